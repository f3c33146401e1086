"""Ports as the services open them: tried beforehand, so that nothing else is taken where one is in use."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

from plaudit.core.errors import ConfigError
from plaudit.core.host.addresses import bare, family


def problem(host: str, port: int) -> str:
    """Reason why the port cannot be listened on; "" if it can.

    Tried with the options of the servers: a connection that a former server has closed (TIME_WAIT) is no obstacle.
    """
    try:
        found = socket.getaddrinfo(bare(host) or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return str(error.strerror)
    problems = [_problem(kind, place) for kind, _, _, _, place in found]
    # A name may have addresses of kinds that this machine lacks: listened on are the others.
    in_use = [text for text, taken in problems if taken]
    if in_use:
        return in_use[0]
    return "" if any(not text for text, _ in problems) else problems[0][0]


def _problem(kind: int, place: Any) -> tuple[str, bool]:
    try:
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except (OSError, OverflowError) as error:
        return str(getattr(error, "strerror", None) or error), isinstance(error, OSError) and _is_taken(error)
    return "", False


def _is_taken(error: OSError) -> bool:
    return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def require_free(setting: str, host: str, port: int) -> None:
    """Raises ConfigError that names the setting if the port cannot be listened on; 0 always can."""
    if port and (why := problem(host, port)):
        raise ConfigError(cannot_open(setting, host, port, why))


def cannot_open(setting: str, host: str, port: int, why: str) -> str:
    return f"{setting}: {port} cannot be opened on {host} ({why}); set another one (0 picks one), or stop what uses it"


@contextlib.contextmanager
def named(setting: str, host: str, port: int) -> Iterator[None]:
    """Raises ConfigError that names the setting in place of the OSError of a port that cannot be opened."""
    try:
        yield
    except OSError as error:
        raise ConfigError(cannot_open(setting, host, port, str(error.strerror or error))) from error


@contextlib.contextmanager
def reserved(setting: str, host: str, port: int) -> Iterator[int]:
    """Hold the port, without listening, so that the processes that share it all find it free; yields its number.

    Raises:
        ConfigError: it is in use, shared or not.
    """
    require_free(setting, host, port)
    with socket.socket(family(host), socket.SOCK_STREAM) as reserving:
        with named(setting, host, port):
            reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserving.bind((bare(host), port))
        yield int(reserving.getsockname()[1])

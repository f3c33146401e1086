"""Checks of the doctor on ports: whether the services can open them as they will, or have."""

from __future__ import annotations

import socket
import ssl
import stat
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc

from plaudit.adapters.access.certificates import CertificateFiles
from plaudit.adapters.access.self_signed import expires_at_s
from plaudit.cli.doctor.findings import Finding, State
from plaudit.cli.processes import ports
from plaudit.compose.access import check_listening, key_file, keys_path
from plaudit.core.errors import ConfigError
from plaudit.core.host.addresses import is_loopback, join, reachable, split
from plaudit.core.settings import Settings, admin_place

_PROBE_TIMEOUT_S: Final = 2.0
_GUARDED: Final = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_SOON_S: Final = 21 * 86_400.0
"""Time before the end of a certificate at which it is to be renewed."""


def examine_ports(settings: Settings) -> Iterator[Finding]:
    """Findings on each port."""
    serving, learner, console = settings.serving, settings.learner, settings.console
    wanted = [
        ("serving.port", serving.host, serving.port, _serves_predictions),
        ("serving.metrics_port", serving.metrics_host, serving.metrics_port, _shows_our_metrics),
        ("learner.metrics_port", learner.host, learner.metrics_port, _shows_our_metrics),
    ]
    own = admin_place(serving)
    if own is not None:
        wanted.append(("serving.admin_address", *own, _serves_predictions))
    if console.port is not None:
        wanted.append(("console.port", console.host, console.port, _shows_our_page))
    uses = Counter(port for _, _, port, _ in wanted if port)
    for setting, host, port, is_ours in wanted:
        if uses[port] > 1:
            others = [name for name, _, other, _ in wanted if other == port and name != setting]
            problem = f"{port} is also {' and '.join(others)}"
            yield Finding(setting, State.ERROR, problem, f"set {setting} to another")
        else:
            yield _port(setting, host, port, is_ours)


def _port(setting: str, host: str, port: int, is_ours: Callable[[str], bool]) -> Finding:
    problem = ports.problem(host, port)
    if not problem:
        return Finding(setting, State.OK, f"{port} is free" if port else "0: a free one is picked")
    if port and is_ours(reachable(host, port)):
        return Finding(setting, State.OK, f"{port}: Plaudit is running there")
    fix = f"stop what uses it, or set {setting} to another"
    return Finding(setting, State.ERROR, f"{join(host, port)} cannot be used ({problem})", fix)


def _serves_predictions(where: str) -> bool:
    """True if a service of ours answers, be it that it asks for a key."""
    host, port = split(where)
    with grpc.insecure_channel(where) as channel:
        call: Any = channel.unary_unary("/plaudit.v1.ModelService/ListVersions")
        try:
            call(b"", timeout=_PROBE_TIMEOUT_S)
        except grpc.RpcError as error:
            return error.code() in _GUARDED or _speaks_tls(host, port)
    return True


def _speaks_tls(host: str, port: int) -> bool:
    """True if what listens there speaks HTTP/2 over TLS, whoever's certificate it shows."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), _PROBE_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as connected,
        ):
            return connected.selected_alpn_protocol() == "h2"
    except OSError:
        return False


def _shows_our_metrics(where: str) -> bool:
    return _holds(f"http://{where}/metrics", b"plaudit_")


def _shows_our_page(where: str) -> bool:
    return _holds(f"http://{where}/", b"<title>Plaudit</title>")


def _holds(url: str, text: bytes) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_TIMEOUT_S) as answer:
            return text in answer.read()
    except (OSError, ValueError):
        return False


def examine_admin(settings: Settings) -> Iterator[Finding]:
    """Finding on who may promote and roll back."""
    own = admin_place(settings.serving)
    if settings.serving.admin_token is not None:
        yield Finding("admin token", State.OK, "set")
    elif own is None or is_loopback(own[0]):
        yield Finding("admin token", State.OK, "none, and only this machine reaches the port")
    else:
        problem = "none: unless there are keys, any client that reaches the port may promote and roll back"
        yield Finding("admin token", State.NOTE, problem, "plaudit keys create NAME --role admin")


def examine_guard(settings: Settings) -> Iterator[Finding]:
    """Findings on TLS, keys and what listens off this machine without them."""
    serving = settings.serving
    try:
        check_listening(settings)
    except ConfigError as error:
        yield Finding("listening", State.ERROR, str(error), "see docs/how-to/secure.md")
    else:
        if serving.open and not is_loopback(serving.host):
            problem = "serving.open: whoever reaches the port may call it in any user's name"
            yield Finding("listening", State.NOTE, problem, "have a proxy in front that asks who calls")
        else:
            yield Finding("listening", State.OK, "only this machine, or with TLS and keys")
    yield from _certificate(settings)
    yield from _keys(settings)


def _certificate(settings: Settings) -> Iterator[Finding]:
    tls = settings.serving.tls
    if tls.certificate is None:
        return
    assert tls.key is not None
    try:
        found = CertificateFiles(tls).current()
        left_s = expires_at_s(found.chain) - time.time()
    except (ConfigError, ValueError) as error:
        yield Finding("certificate", State.ERROR, str(error), "make one with `plaudit tls self-signed`")
        return
    renew = "renew it; a running service reads the new files by itself"
    mode = stat.S_IMODE(tls.key.stat().st_mode)
    if left_s <= 0.0:
        yield Finding("certificate", State.ERROR, f"{tls.certificate} has expired", renew)
    elif mode & (stat.S_IRWXG | stat.S_IRWXO):
        problem = f"{tls.key} can be read by others (mode {mode:o}), who could pose as this service"
        yield Finding("certificate", State.ERROR, problem, f"chmod 600 '{tls.key}'")
    elif left_s < _SOON_S:
        yield Finding("certificate", State.NOTE, f"expires in {left_s / 86_400:.0f} days", renew)
    else:
        yield Finding("certificate", State.OK, f"fits its key, and is valid for {left_s / 86_400:.0f} days")


def _keys(settings: Settings) -> Iterator[Finding]:
    path = keys_path(settings)
    if not path.exists():
        yield Finding("keys", State.OK, "none: callers need no key")
        return
    entries = key_file(settings).entries()
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        problem = f"{path} can be read or changed by others (mode {mode:o})"
        yield Finding("keys", State.ERROR, problem, f"chmod 600 '{path}'")
    elif not entries:
        yield Finding("keys", State.NOTE, "the last one was revoked: nobody may call", "plaudit keys create NAME")
    else:
        yield Finding("keys", State.OK, f"{len(entries)}, for their owner alone")

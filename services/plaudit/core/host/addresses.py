"""Hosts and ports as text: where to listen, and where to reach what listens there. IPv6 literals stand in brackets."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

_MAX_PORT: Final = 65_535
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Host that reaches what listens on all addresses, by the name of "all addresses"."""


def bare(host: str) -> str:
    """``host`` without the brackets that an IPv6 literal may be written in: ``[::1]`` is ``::1``."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def join(host: str, port: int) -> str:
    """``host:port``, with the brackets that an IPv6 literal needs."""
    host = bare(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(host: str, port: int) -> str:
    """Address to reach what listens on ``host``: one of this machine where it listens on all of them."""
    host = bare(host)
    return join(_ANY.get(host, host), port)


def family(host: str) -> socket.AddressFamily:
    """Family of the sockets that listen on ``host``."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def listening_socket(host: str, port: int, backlog: int = 128) -> socket.socket:
    """A listening socket; ``::`` takes IPv4 as well.

    Raises:
        OSError: the port is taken, or the host is not an address of this machine.
    """
    host = bare(host)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=found, backlog=backlog, dualstack_ipv6=both)


def split(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of ``host:port``.

    Raises:
        ValueError: it is no such address.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > _MAX_PORT:
        raise ValueError(f"{address[:80]!r} is not host:port")
    if ":" in host and bare(host) == host:
        raise ValueError(f"{address[:80]!r}: an IPv6 address stands in brackets, as in [::1]:8005")
    return bare(host), int(port)


def is_loopback(host: str) -> bool:
    """True if only this machine reaches what listens on ``host``. A name other than localhost may be anywhere."""
    try:
        return ipaddress.ip_address(bare(host)).is_loopback
    except ValueError:
        return host == "localhost"

"""Addresses to listen on and to connect to: host names, IPv4 and IPv6 literals, with or without brackets."""

from __future__ import annotations

import socket


def host_and_port(host: str, port: int) -> str:
    """``host:port`` with an IPv6 literal in brackets, as URLs and gRPC have it."""
    bare = without_brackets(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def without_brackets(host: str) -> str:
    """An IPv6 literal as sockets take it; anything else unchanged."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def listening_socket(host: str, port: int, backlog: int = 128) -> socket.socket:
    """A listening socket; ``::`` takes IPv4 as well.

    Raises:
        OSError: the port is taken, or the host is not an address of this machine.
    """
    bare = without_brackets(host)
    family = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    both = bare == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((bare, port), family=family, backlog=backlog, dualstack_ipv6=both)

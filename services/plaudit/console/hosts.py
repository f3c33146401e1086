"""Host names that the page answers to, so that no other site can reach it through a name of its own (DNS rebinding).

An address that is listened on is known by itself; where all are, so are all IP literals, as no site is one, and the
names of this machine.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from plaudit.core.host.addresses import bare as bare_host

_LOCAL: Final = ("127.0.0.1", "::1", "localhost")
_ALL: Final = ("0.0.0.0", "::")
ANY: Final = "*"
"""Name that stands for all."""


def known_hosts(listening: str, names: Iterable[str]) -> Callable[[str], bool]:
    """Whether a host name, without its port, is one of the page's.

    Args:
        listening: address that the page listens on.
        names: further ones that browsers may use, such as that of a proxy.
    """
    bare = bare_host(listening)
    known = {name.lower() for name in (*_LOCAL, bare, *names)}
    everywhere = bare in _ALL
    if everywhere:
        known |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def is_known(host: str) -> bool:
        return ANY in known or host in known or (everywhere and _is_literal(host))

    return is_known


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class KnownHosts:
    """Refuses requests to, and from pages of, other host names."""

    def __init__(self, app: ASGIApp, is_known: Callable[[str], bool]) -> None:
        self._app = app
        self._is_known = is_known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, origin = _host_of(f"//{headers.get('host', '')}"), headers.get("origin")
            if not self._is_known(host):
                problem = f"host: {host[:80]!r} is not one of this page's names; add it to console.hosts"
                await JSONResponse({"error": problem}, 400)(scope, receive, send)
                return
            if origin is not None and not self._is_known(_host_of(origin)):
                problem = f"origin: {origin[:80]!r} is another site, which may not use this page"
                await JSONResponse({"error": problem}, 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""

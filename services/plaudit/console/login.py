"""Login of the page where others than this machine reach it: an API key, as the password of HTTP's basic scheme.

Browsers ask for it themselves and keep it for the page alone; other sites cannot use it: see
:mod:`plaudit.console.hosts`.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from plaudit.core.access import EVERYBODY, CallerRole, Principal
from plaudit.core.errors import NeedsRole, PlauditError, Unauthorized, UnknownCredentials
from plaudit.core.limits import MAX_TOKEN_CHARACTERS
from plaudit.core.ports.access import Authenticator

_SCHEME: Final = "basic "
_ASK: Final = {"www-authenticate": 'Basic realm="Plaudit: any name, and an API key as the password", charset="UTF-8"'}
_PRINCIPAL: Final = "plaudit_principal"


class Login:
    """Refuses requests without a key that has the roles predict and feedback.

    Args:
        authenticator: knows the keys; None: nobody needs one.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticator | None) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._authenticator is not None:
            try:
                scope[_PRINCIPAL] = self._principal(Headers(scope=scope).get("authorization", ""), self._authenticator)
            except Unauthorized as error:
                await JSONResponse({"error": str(error)}, 401, headers=_ASK)(scope, receive, send)
                return
            except PlauditError as error:
                await JSONResponse({"error": str(error)}, 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _principal(self, header: str, authenticator: Authenticator) -> Principal:
        principal = authenticator.principal(_password(header))
        for role in (CallerRole.PREDICT, CallerRole.FEEDBACK):
            if role not in principal.roles:
                raise NeedsRole(role, sorted(principal.roles))
        return principal


def principal_of(request: Request) -> Principal:
    """Who is logged in; everybody, where nobody needs to be."""
    principal: Principal = request.scope.get(_PRINCIPAL, EVERYBODY)
    return principal


def _password(header: str) -> str:
    """Password of a basic login. Raises UnknownCredentials: there is none."""
    if len(header) > MAX_TOKEN_CHARACTERS or header[: len(_SCHEME)].lower() != _SCHEME:
        raise UnknownCredentials("is missing; it is the password of this page, with any name")
    try:
        text = base64.b64decode(header[len(_SCHEME) :], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise UnknownCredentials("is not to be read") from None
    return text.partition(":")[2]

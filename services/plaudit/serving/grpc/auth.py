"""Access control of one port: who calls, and whether the call may be made. Decided before a message is read."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any, Final

from plaudit.core.access import EVERYBODY, CallerRole, Principal
from plaudit.core.errors import (
    NeedsCredentials,
    NeedsRole,
    NoRoleForMethod,
    OnAdminPortOnly,
    Unauthorized,
    UnknownCredentials,
    WrongToken,
)
from plaudit.core.limits import MAX_TOKEN_CHARACTERS
from plaudit.core.ports.access import Authenticator
from plaudit.serving.grpc.quotas import Quotas
from plaudit.serving.grpc.roles import ROLES

_BEARER: Final = "bearer "
_NO_ADMIN: Final = EVERYBODY.without(CallerRole.ADMIN)
_OPERATOR: Final = Principal("admin token", frozenset(CallerRole), speaks_for_others=True)
"""Caller with the admin token."""


class AccessControl:
    """Args:
    authenticator: knows keys and tokens; None: nobody needs any.
    admin_token: token of admins; None: there is none.
    quotas: what callers may still do, on all ports together.
    admin_calls: calls of admins are answered on this port.
    roles: role by full method name; None: anybody may call it.
    """

    def __init__(
        self,
        authenticator: Authenticator | None,
        admin_token: str | None,
        quotas: Quotas,
        *,
        admin_calls: bool,
        roles: Mapping[str, CallerRole | None] = ROLES,
    ) -> None:
        self._authenticator = authenticator
        self._admin_token = None if admin_token is None else admin_token.encode()
        self._quotas = quotas
        self._admin_calls = admin_calls
        self._roles = roles

    def check(self, method: str, context: Any) -> None:
        """Let the call pass, and note whose it is for :func:`principal_of`.

        Raises:
            Unauthorized: it has no credentials, or wrong ones.
            Forbidden: its caller may not make it here.
            QuotaSpent: its caller has made too many.
        """
        if method not in self._roles:
            raise NoRoleForMethod(method)
        role = self._roles[method]
        if role is None:
            return
        principal = self._principal(context, role)
        if role not in principal.roles:
            raise NeedsRole(role, sorted(principal.roles))
        if not self._admin_calls:
            if role is CallerRole.ADMIN:
                raise OnAdminPortOnly
            principal = principal.without(CallerRole.ADMIN)
        context.plaudit_principal = principal
        self._quotas.spend(principal)

    def count_message(self, context: Any) -> None:
        """Count a further message of a stream that has passed. Raises QuotaSpent."""
        self._quotas.spend(principal_of(context))

    def _principal(self, context: Any, role: CallerRole) -> Principal:
        token = _token_of(context)
        if token and self._admin_token is not None and hmac.compare_digest(token.encode(), self._admin_token):
            return _OPERATOR
        if self._authenticator is not None and self._authenticator.asks():
            if token is None:
                raise NeedsCredentials
            if not token:
                raise UnknownCredentials("came otherwise than once, as `authorization: Bearer KEY`")
            return self._authenticator.principal(token)
        if self._admin_token is None:
            return EVERYBODY
        if role is CallerRole.ADMIN:
            raise Unauthorized if token is None else WrongToken
        return _NO_ADMIN


def principal_of(context: Any) -> Principal:
    """The caller of a call that has passed."""
    principal: Principal = context.plaudit_principal
    return principal


def _token_of(context: Any) -> str | None:
    """Token of the call's metadata; None if there is none, "" if there are several, or what is there is no token."""
    given = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
    if not given:
        return None
    if len(given) > 1 or len(given[0]) > MAX_TOKEN_CHARACTERS or given[0][: len(_BEARER)].lower() != _BEARER:
        return ""
    return given[0][len(_BEARER) :]

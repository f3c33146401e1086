"""Credentials of both kinds: API keys, and tokens of an identity provider."""

from __future__ import annotations

from plaudit.adapters.access.keys import PREFIX, KeyAuthenticator
from plaudit.core.access import Principal
from plaudit.core.errors import UnknownCredentials
from plaudit.core.ports.access import Authenticator


class Credentials:
    """Args:
    tokens: knows what is no API key; None: nothing else is taken.
    """

    def __init__(self, keys: KeyAuthenticator, tokens: Authenticator | None) -> None:
        self._keys = keys
        self._tokens = tokens

    def asks(self) -> bool:
        return self._tokens is not None or self._keys.asks()

    def principal(self, token: str) -> Principal:
        if token.startswith(PREFIX):
            return self._keys.principal(token)
        if self._tokens is None:
            raise UnknownCredentials
        return self._tokens.principal(token)

"""JSON web tokens of an identity provider, verified with PyJWT and the provider's public keys (JWKS, RFC 7517).

Algorithms are fixed by the settings, never by the token; `exp`, `aud`, `iss` and `sub` are required.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import jwt
import structlog

from plaudit.core.access import CallerRole, Principal
from plaudit.core.errors import ConfigError, InvalidInput, Unavailable, UnknownCredentials
from plaudit.core.host.os_errors import explain
from plaudit.core.limits import JWKS_COOLDOWN_S, JWKS_TIMEOUT_S, MAX_JWKS_BYTES, MAX_REMEMBERED_TOKENS
from plaudit.core.settings import JwtSettings
from plaudit.core.text.identifiers import check_given_id

_REQUIRED: Final = ["exp", "aud", "iss", "sub"]
_URL_SCHEMES: Final = ("http://", "https://")

logger = structlog.get_logger(__name__)


class JwtAuthenticator:
    """A caller is the token's subject, and speaks for nobody else. Safe to use from several threads.

    Args:
        clock: UTC seconds.

    Raises:
        ConfigError: the file with the public keys cannot be read. What a URL has is read with the first token.
    """

    def __init__(self, settings: JwtSettings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._keys = PublicKeys(settings.jwks, clock)
        self._remembered: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self._lock = threading.Lock()
        self._generation = self._keys.generation

    def asks(self) -> bool:
        return True

    def principal(self, token: str) -> Principal:
        self._keys.refresh()
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        with self._lock:
            if self._generation != self._keys.generation:  # a key may have been withdrawn
                self._generation = self._keys.generation
                self._remembered.clear()
            found = self._remembered.get(digest)
            if found is not None:
                self._remembered.move_to_end(digest)
        if found is not None and self._clock() < found[1]:
            return found[0]
        principal, expires_s = self._verified(token)
        with self._lock:
            self._remembered[digest] = principal, expires_s
            while len(self._remembered) > MAX_REMEMBERED_TOKENS:
                self._remembered.popitem(last=False)
        return principal

    def _verified(self, token: str) -> tuple[Principal, float]:
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in self._settings.algorithms:
                raise UnknownCredentials(f"is not signed with one of {list(self._settings.algorithms)}")
            claims = jwt.decode(
                token,
                self._keys.key(header.get("kid")),
                algorithms=list(self._settings.algorithms),
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                options={"require": _REQUIRED},
            )
        except jwt.ExpiredSignatureError as error:
            raise UnknownCredentials("has expired") from error
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise UnknownCredentials(f"is no valid token ({type(error).__name__})") from error
        try:
            check_given_id("sub", claims["sub"])
        except InvalidInput as error:
            raise UnknownCredentials("has a subject that can be no user id") from error
        subject = claims["sub"]
        principal = Principal(
            f"jwt:{subject}", self._roles(claims), subject, calls_per_minute=self._settings.calls_per_minute
        )
        return principal, float(claims["exp"])

    def _roles(self, claims: dict[str, Any]) -> frozenset[CallerRole]:
        """Roles of the claim; words that are no role mean nothing here."""
        given = claims.get(self._settings.roles_claim, self._settings.roles)
        words = given.split() if isinstance(given, str) else given
        if not isinstance(words, Sequence):
            return frozenset()
        return frozenset(role for role in CallerRole if role in words)


class PublicKeys:
    """The provider's public keys, from a file or a URL.

    A file is read again when it changes; a URL when a token names a key that is not known, and not too often.

    Attributes:
        generation: grows whenever the keys were read again.
    """

    def __init__(self, source: str, clock: Callable[[], float]) -> None:
        self.generation = 0
        self._url = source if source.startswith(_URL_SCHEMES) else None
        self._path = Path(source)
        self._clock = clock
        self._lock = threading.Lock()
        self._by_id: dict[str | None, jwt.PyJWK] = {}
        self._stamp: object = None
        self._fetched_s = -JWKS_COOLDOWN_S
        if self._url is None:
            self._read_file()

    def refresh(self) -> None:
        """Read the file again, if it has changed. What cannot be read leaves the keys as they are."""
        if self._url is not None:
            return
        try:
            self._read_file()
        except ConfigError as error:
            logger.error("jwks_not_read", problem=str(error), stays="the keys that were read before")

    def key(self, id_: str | None) -> jwt.PyJWK:
        """The key that a token names; where it names none, the only one.

        Raises:
            UnknownCredentials: there is no such key.
            Unavailable: the URL does not answer, and no key was ever read.
        """
        if self._url is not None and id_ not in self._by_id:
            self._fetch()
        if id_ is None and len(self._by_id) == 1:
            return next(iter(self._by_id.values()))
        found = self._by_id.get(id_) if id_ is not None else None
        if found is None:
            raise UnknownCredentials("is signed with a key that its issuer does not publish")
        return found

    def _read_file(self) -> None:
        try:
            status = self._path.stat()
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            with self._path.open("rb") as file:
                self._take(file.read(MAX_JWKS_BYTES + 1))
        except OSError as error:
            raise ConfigError(f"serving.jwt.jwks: {explain(error)}") from error

    def _fetch(self) -> None:
        with self._lock:
            if time.monotonic() - self._fetched_s < JWKS_COOLDOWN_S:
                return
            self._fetched_s = time.monotonic()
            assert self._url is not None
            try:
                with urllib.request.urlopen(self._url, timeout=JWKS_TIMEOUT_S) as answer:
                    self._take(answer.read(MAX_JWKS_BYTES + 1))
            except (OSError, ValueError, ConfigError) as error:
                logger.error("jwks_not_read", problem=str(error), stays="the keys that were read before")
                if not self._by_id:
                    raise Unavailable("authorization: the issuer's public keys cannot be read; try again") from error

    def _take(self, raw: bytes) -> None:
        try:
            if len(raw) > MAX_JWKS_BYTES:
                raise ValueError(f"more than {MAX_JWKS_BYTES} bytes")
            keys = jwt.PyJWKSet.from_dict(json.loads(raw)).keys
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"serving.jwt.jwks: no set of public keys ({error})") from error
        self._by_id = {each.key_id: each for each in keys}
        self.generation += 1

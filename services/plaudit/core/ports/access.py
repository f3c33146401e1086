"""Ports of what guards the doors: who presents a token, and the certificates of a listener."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from plaudit.core.access import Principal


class Authenticator(Protocol):
    """Checks the tokens that callers present. Safe to use from several threads."""

    def asks(self) -> bool:
        """True if callers need a token. Once they do, they do until the process ends."""
        ...

    def principal(self, token: str) -> Principal:
        """The caller that the token belongs to.

        Raises:
            UnknownCredentials: it is no token of this service, or not any more.
        """
        ...


@dataclass(frozen=True, slots=True)
class CertificateChain:
    """Certificate of a listener, in PEM.

    Attributes:
        chain: its own first, then those that lead to the authority.
        key: the private key.
        client_ca: authorities that clients' certificates must come from; None: clients need none.
    """

    chain: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None


class CertificateSource(Protocol):
    """Where a listener's certificate comes from."""

    def current(self) -> CertificateChain:
        """The present certificate; asked for at every handshake. Never raises once it has succeeded."""
        ...

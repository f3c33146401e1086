"""Certificates from PEM files, read again when the files change. The standard library's OpenSSL checks them."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from typing import Final

import structlog

from plaudit.core.errors import ConfigError
from plaudit.core.host.os_errors import explain
from plaudit.core.ports.access import CertificateChain
from plaudit.core.settings import TlsSettings

_ATTEMPTS: Final = 3
"""Readings of the files, in case they change meanwhile."""

logger = structlog.get_logger(__name__)

Stamp = tuple[tuple[int, int, int], ...]


class CertificateFiles:
    """Certificate of a listener from the files that the settings name; safe to use from several threads.

    A certificate that is replaced is used from the next handshake on. While the new files do not fit together, as
    between the writing of the one and the other, the old ones stay in use.

    Raises:
        ConfigError: a file is missing, unreadable, or they do not fit together.
    """

    def __init__(self, tls: TlsSettings) -> None:
        assert tls.certificate is not None
        assert tls.key is not None
        self._certificate, self._key, self._client_ca = tls.certificate, tls.key, tls.client_ca
        self._lock = threading.Lock()
        self._stamp = self._stamp_now()
        self._current = self._read()

    def current(self) -> CertificateChain:
        with self._lock:
            try:
                stamp = self._stamp_now()
                if stamp != self._stamp:
                    self._current = self._read()
                    self._stamp = stamp
                    logger.info("certificate_read", file=str(self._certificate))
            except ConfigError as error:
                logger.error("certificate_not_read", problem=str(error), stays="the one that was read before")
            return self._current

    def _paths(self) -> tuple[tuple[str, Path], ...]:
        ca = (("client_ca", self._client_ca),) if self._client_ca is not None else ()
        return ("certificate", self._certificate), ("key", self._key), *ca

    def _stamp_now(self) -> Stamp:
        stamps = []
        for name, path in self._paths():
            try:
                status = path.stat()
            except OSError as error:
                raise ConfigError(f"serving.tls.{name}: {explain(error)}") from error
            stamps.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(stamps)

    def _read(self) -> CertificateChain:
        """What the files hold, which OpenSSL has checked in the same state."""
        for _ in range(_ATTEMPTS):
            before = self._bytes()
            self._check()
            if self._bytes() == before:
                return CertificateChain(*before)
        raise ConfigError(f"serving.tls.certificate: {self._certificate} changes all the time; write it once")

    def _bytes(self) -> list[bytes]:
        read = []
        for name, path in self._paths():
            try:
                read.append(path.read_bytes())
            except OSError as error:
                raise ConfigError(f"serving.tls.{name}: {explain(error)}") from error
        return read

    def _check(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise ConfigError(
                f"serving.tls: {self._certificate} and {self._key} are not a certificate and its private key without "
                f"a password, both PEM ({_reason(error)}); `plaudit tls self-signed` makes such a pair"
            ) from error
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
            except (ssl.SSLError, OSError) as error:
                raise ConfigError(
                    f"serving.tls.client_ca: {self._client_ca} holds no certificates in PEM ({_reason(error)})"
                ) from error


def _no_password() -> str:
    """Instead of a question at the terminal, which no service has."""
    raise ValueError("the key has a password")


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)

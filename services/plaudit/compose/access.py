"""What guards the ports of the inference service: certificates, keys, tokens; and whether that is enough."""

from __future__ import annotations

from pathlib import Path

from plaudit.adapters.access.certificates import CertificateFiles
from plaudit.adapters.access.credentials import Credentials
from plaudit.adapters.access.keys import KeyAuthenticator, KeyFile
from plaudit.compose.paths import data_dir
from plaudit.core.errors import ConfigError
from plaudit.core.host.addresses import is_loopback
from plaudit.core.ports.access import Authenticator
from plaudit.core.settings import Settings, admin_place
from plaudit.serving.server import Guard


def key_file(settings: Settings) -> KeyFile:
    """The file of API keys, for those who change it."""
    return KeyFile(keys_path(settings))


def keys_path(settings: Settings) -> Path:
    return data_dir(settings) / "keys.json"


def guard(settings: Settings) -> Guard:
    """Guard of the ports.

    Raises:
        ConfigError: certificate or keys cannot be read, or a port that others reach would be unguarded.
    """
    check_listening(settings)
    tls = settings.serving.tls
    return Guard(_credentials(settings), None if tls.certificate is None else CertificateFiles(tls))


def check_listening(settings: Settings) -> None:
    """Raises ConfigError, with the way out, if a port that others reach would be without TLS or keys."""
    serving = settings.serving
    own = admin_place(serving)
    reached = [("serving.host", serving.host)] + ([] if own is None else [("serving.admin_address", own[0])])
    elsewhere = [(setting, host) for setting, host in reached if not is_loopback(host)]
    if not elsewhere or serving.open:
        return
    missing = []
    if serving.tls.certificate is None:
        missing.append(
            "TLS: `plaudit tls self-signed --host NAME` makes a certificate, [serving.tls] certificate and key name it"
        )
    if not serving.jwt.jwks and not key_file(settings).entries():
        missing.append("keys: `plaudit keys create NAME` makes one")
    if missing:
        setting, host = elsewhere[0]
        raise ConfigError(
            f"{setting}: others than this machine reach {host}, which needs {'; and '.join(missing)}. Or listen on "
            "127.0.0.1, or set serving.open = true where a proxy in front has both (docs/how-to/secure.md)"
        )


def console_login(settings: Settings) -> Authenticator | None:
    """What users of the console log in with; None where only this machine reaches it, or a proxy asks.

    Raises:
        ConfigError: others reach it, and there is no key.
    """
    host = settings.console.host
    if is_loopback(host) or settings.serving.open:
        return None
    credentials = _credentials(settings)
    if not credentials.asks():
        raise ConfigError(
            f"console.host: others than this machine reach {host}, and there is no key to log in with; `plaudit keys "
            "create NAME` makes one. Or listen on 127.0.0.1, or set serving.open = true where a proxy in front asks"
        )
    return credentials


def _credentials(settings: Settings) -> Authenticator:
    tokens: Authenticator | None = None
    if settings.serving.jwt.jwks:
        from plaudit.adapters.access.jwt import JwtAuthenticator

        tokens = JwtAuthenticator(settings.serving.jwt)
    return Credentials(KeyAuthenticator(keys_path(settings)), tokens)

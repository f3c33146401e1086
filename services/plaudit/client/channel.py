"""Options of the client's channels: message size, keep-alive, and which calls are retried."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from plaudit import __version__
from plaudit.client.errors import invalid

DEFAULT_TARGET: Final = "127.0.0.1:8001"
DEFAULT_TIMEOUT_S: Final = 10.0
SYSTEM: Final = "system"
"""In place of a file of certificates: those of the well-known authorities."""
DEFAULT_MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024

_SCHEMES: Final = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
"""Of gRPC's own names."""

# Retried on UNAVAILABLE: calls that read, a prediction (a decision without feedback teaches nothing), and feedback,
# whose id the client made, so that a second arrival is recognised as a duplicate. Changes of the rollout are not:
# rolling back twice is not rolling back once.
_RETRIED: Final = {
    "plaudit.v1.PredictionService": ("Predict",),
    "plaudit.v1.FeedbackService": ("SendFeedback", "GetReceipt"),
    "plaudit.v1.ModelService": ("ListVersions", "GetVersion"),
}
_SERVICE_CONFIG: Final = {
    "methodConfig": [
        {
            "name": [
                {"service": service, "method": method} for service, methods in _RETRIED.items() for method in methods
            ],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


def checked(target: str) -> str:
    """``target``, if gRPC takes it for what it looks like.

    Raises:
        ClientError: an IPv6 address without brackets, of which gRPC would take the port for a part of it.
    """
    scheme, _, _ = target.partition(":")
    if target.count(":") > 1 and "[" not in target and scheme not in _SCHEMES:
        raise invalid("target", f"{target[:80]!r}: an IPv6 address stands in brackets, as in [::1]:8001")
    return target


def options(max_message_bytes: int) -> Sequence[tuple[str, int | str]]:
    return (
        ("grpc.primary_user_agent", f"plaudit-python/{__version__}"),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        # A restarted server is found within two seconds; by default gRPC waits for up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Notices a dead peer under an idle stream; Plaudit's servers allow a ping every 30 s.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """What the client shows to the server. Files are read once.

    Attributes:
        api_key: key or token of every call; None: none.
        admin_token: of the calls that change which version serves, where there is no key.
        tls_ca: certificates, PEM, of which one must have signed the server's; SYSTEM: those that gRPC brings along;
            None: plain text.
        certificate: the client's own, PEM, where the server asks for one.
        key: its private key, PEM.
    """

    api_key: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    tls_ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None

    def metadata(self, *, admin: bool) -> tuple[tuple[str, str], ...] | None:
        """Metadata of a call."""
        token = self.api_key or (self.admin_token if admin else None)
        return (("authorization", f"Bearer {token}"),) if token else None

    def credentials(self, target: str, given: grpc.ChannelCredentials | None) -> grpc.ChannelCredentials | None:
        """Credentials of the channel; None: plain text.

        Args:
            given: made by the caller, instead of files.

        Raises:
            ClientError: the files do not go together, or cannot be read; a key would leave this machine in clear.
        """
        if (self.certificate is None) != (self.key is None):
            raise invalid("certificate" if self.key else "key", "is missing; certificate and key go together")
        if given is not None:
            if self.tls_ca is not None or self.certificate is not None:
                raise invalid("credentials", "were given beside files; give one of both")
            return given
        if self.tls_ca is None and self.certificate is None:
            if (self.api_key or self.admin_token) and not _is_local(target):
                what = "api_key" if self.api_key else "admin_token"
                raise invalid(
                    what, f"would be sent to {target[:80]!r} in clear; give tls_ca, or credentials of your own"
                )
            return None
        return grpc.ssl_channel_credentials(
            None if self.tls_ca in (None, SYSTEM) else _read("tls_ca", self.tls_ca),
            _read("key", self.key),
            _read("certificate", self.certificate),
        )


def _read(name: str, path: Path | str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise invalid(name, f"{path} cannot be read ({error.strerror})") from error


def _is_local(target: str) -> bool:
    """True if what is sent to the target stays on this machine."""
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    place = rest.lstrip("/") if scheme in _SCHEMES else target
    host = place.rpartition(":")[0] or place
    host = host.strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""Options of the client's channels: message size, keep-alive, and which calls are retried."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from plaudit import __version__
from plaudit.client.errors import invalid

DEFAULT_TARGET: Final = "127.0.0.1:8001"
DEFAULT_TIMEOUT_S: Final = 10.0
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


def metadata(admin_token: str | None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {admin_token}"),) if admin_token else ()

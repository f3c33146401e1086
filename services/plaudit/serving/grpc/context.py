"""What use cases need to know of a gRPC call, and times as messages."""

from __future__ import annotations

import math
import time
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from plaudit.serving.engine.call_context import CallContext


def call_context(context: Any) -> CallContext:
    """Deadline and presence of the client of a gRPC call."""
    remaining_s = context.time_remaining()
    deadline_s = math.inf if remaining_s is None else time.monotonic() + remaining_s
    return CallContext(deadline_s, context.is_active, context.is_active)


def timestamp(time_s: float) -> Timestamp:
    """UTC seconds since the epoch as a message."""
    message = Timestamp()
    message.FromMicroseconds(round(time_s * 1e6))
    return message

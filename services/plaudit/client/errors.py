"""The one exception of the client: what the server refused, or what would have been refused had it been sent."""

from __future__ import annotations

import re

import grpc

_NAMES_A_FIELD = re.compile(r'([a-z_]+(?:\["[^"]*"\]|\[\d+\])?(?:\.[a-z_]+)*): ')


class ClientError(Exception):
    """A call that gave no result.

    Attributes:
        code: the gRPC status; INVALID_ARGUMENT also for what the client itself refuses to send.
        message: one sentence for people.
        field: the field of the request the message is about, such as ``content["image"]``; "" if about none.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        named = _NAMES_A_FIELD.match(message)
        self.field = named.group(1) if named else ""


def invalid(field: str, problem: str) -> ClientError:
    """What the client refuses to send."""
    return ClientError(grpc.StatusCode.INVALID_ARGUMENT, f"{field}: {problem}")


def from_rpc_error(error: grpc.RpcError, target: str) -> ClientError:
    """Both colours of grpc's errors have a code and details, though the base class does not say so."""
    code: grpc.StatusCode = error.code()
    details: str = error.details() or "the server gave no reason"
    if code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in details:
        details = f"no server answers at {target}; is `plaudit serve` running there?"
    return ClientError(code, details)

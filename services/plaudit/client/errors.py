"""Exception of the client: a request that the server refused, or that the client refuses to send."""

from __future__ import annotations

import re

import grpc

_NAMES_A_FIELD = re.compile(r'([a-z_]+(?:\["[^"]*"\]|\[\d+\])?(?:\.[a-z_]+)*): ')


class ClientError(Exception):
    """A call without a result.

    Attributes:
        code: gRPC status; INVALID_ARGUMENT also where the client refuses to send the request.
        message: one sentence.
        field: field of the request that the message names, such as ``content["image"]``; "" if none.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        named = _NAMES_A_FIELD.match(message)
        self.field = named.group(1) if named else ""


def invalid(field: str, problem: str) -> ClientError:
    """Error for a request that the client refuses to send."""
    return ClientError(grpc.StatusCode.INVALID_ARGUMENT, f"{field}: {problem}")


def from_rpc_error(error: grpc.RpcError, target: str) -> ClientError:
    """Error for one of grpc, sync or asyncio; both have a code and details, though their base class has not."""
    code: grpc.StatusCode = error.code()
    details: str = error.details() or "the server gave no reason"
    if code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in details:
        details = f"no server answers at {target}; is `plaudit serve` running there?"
    return ClientError(code, details)

"""``plaudit.v1.FeedbackService``: decode, call, encode. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from plaudit.core.access import Principal
from plaudit.core.errors import InvalidInput, OtherUser
from plaudit.core.limits import MAX_ID_CHARACTERS
from plaudit.core.text.identifiers import check_id
from plaudit.core.wire import signal_from_wire
from plaudit.serving.engine.call_context import CallContext
from plaudit.serving.grpc.auth import principal_of
from plaudit.serving.grpc.context import call_context, timestamp
from plaudit.serving.grpc.interceptors import status_of
from plaudit.serving.grpc.open_calls import OpenCalls
from plaudit.serving.grpc.streams import in_groups
from plaudit.serving.use_cases.feedback import FeedbackReceipt, FeedbackRequest, FeedbackUseCase, ReceiptState
from plaudit.v1 import feedback_pb2, feedback_pb2_grpc

_MAX_GROUP: Final = 256
"""Feedback of one stream that becomes durable together."""

_STATES: Final = {
    ReceiptState.RECORDED: feedback_pb2.RECEIPT_STATE_RECORDED,
    ReceiptState.JOINED: feedback_pb2.RECEIPT_STATE_JOINED,
    ReceiptState.DISCARDED: feedback_pb2.RECEIPT_STATE_DISCARDED,
    ReceiptState.USED: feedback_pb2.RECEIPT_STATE_USED,
    ReceiptState.LIVE: feedback_pb2.RECEIPT_STATE_LIVE,
}


class FeedbackServicer(feedback_pb2_grpc.FeedbackServiceServicer):
    def __init__(self, feedback: FeedbackUseCase, open_calls: OpenCalls) -> None:
        self._feedback = feedback
        self._open_calls = open_calls

    def SendFeedback(
        self, request: feedback_pb2.SendFeedbackRequest, context: Any
    ) -> feedback_pb2.SendFeedbackResponse:
        duplicate = self._feedback.send(_feedback_request(request, principal_of(context)), call_context(context))
        return _feedback_to_wire(request.feedback_id, duplicate)

    def StreamFeedback(
        self, request_iterator: Iterator[feedback_pb2.SendFeedbackRequest], context: Any
    ) -> Iterator[feedback_pb2.SendFeedbackResponse]:
        """The feedback that arrived while the last group became durable is the next group."""
        call, caller = call_context(context), principal_of(context)
        size_bytes = feedback_pb2.SendFeedbackRequest.ByteSize
        for group in in_groups(request_iterator, size_bytes, self._open_calls, context, limit=_MAX_GROUP):
            yield from self._send_group(group, caller, call)

    def GetReceipt(self, request: feedback_pb2.GetReceiptRequest, context: Any) -> feedback_pb2.Receipt:
        return _receipt_to_wire(self._feedback.receipt(request.feedback_id))

    def _send_group(
        self, group: Sequence[feedback_pb2.SendFeedbackRequest], caller: Principal, call: CallContext
    ) -> Iterator[feedback_pb2.SendFeedbackResponse]:
        """One answer each; a refusal is an answer too, so that the stream goes on."""
        outcomes: list[bool | Exception] = [False] * len(group)
        readable = []
        for place, message in enumerate(group):
            try:
                readable.append((place, _feedback_request(message, caller)))
            except (InvalidInput, OtherUser) as error:
                outcomes[place] = error
        sent = self._feedback.send_all([request for _, request in readable], call)
        for (place, _), outcome in zip(readable, sent, strict=True):
            outcomes[place] = outcome
        for message, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                code, text = status_of(outcome, "FeedbackService/StreamFeedback")
                yield feedback_pb2.SendFeedbackResponse(
                    feedback_id=message.feedback_id[:MAX_ID_CHARACTERS],
                    error=feedback_pb2.FeedbackError(code=code.value[0], message=text),
                )
            else:
                yield _feedback_to_wire(message.feedback_id, outcome)


def _feedback_request(message: feedback_pb2.SendFeedbackRequest, caller: Principal) -> FeedbackRequest:
    return FeedbackRequest(
        feedback_id=message.feedback_id,
        prediction_id=message.prediction_id,
        user_id=caller.user_of(check_id("user_id", message.user_id)),
        signal=signal_from_wire(message),
    )


def _feedback_to_wire(feedback_id: str, duplicate: bool) -> feedback_pb2.SendFeedbackResponse:
    status = feedback_pb2.FEEDBACK_STATUS_DUPLICATE if duplicate else feedback_pb2.FEEDBACK_STATUS_ACCEPTED
    return feedback_pb2.SendFeedbackResponse(feedback_id=feedback_id, status=status)


def _receipt_to_wire(receipt: FeedbackReceipt) -> feedback_pb2.Receipt:
    return feedback_pb2.Receipt(
        feedback_id=receipt.feedback_id,
        state=_STATES[receipt.state],
        reason=receipt.reason,
        recorded_at=timestamp(receipt.recorded_at_s),
        used_in_version=receipt.used_in_version or 0,
        live_since=None if receipt.live_since_s is None else timestamp(receipt.live_since_s),
    )

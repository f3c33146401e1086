"""FeedbackService over a real channel: durable when answered, refused with a reason, and what receipts say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.errors import InvalidInput, LogUnavailable, StoreUnavailable
from plaudit.core.events import (
    Correction,
    Event,
    Feedback,
    Implicit,
    ImplicitKind,
    Preference,
    Rating,
    Retract,
    Signal,
    Thumb,
)
from plaudit.core.experience import FeedbackState
from plaudit.core.ports.log import AppendOutcome
from plaudit.core.ports.store import FeedbackStatus
from plaudit.core.prediction_id import PredictionIds, SignedPrediction
from plaudit.v1 import feedback_pb2
from support.builders import NOW_S, tiny_head_refresh
from support.serving_harness import Serve, a_thumb, feedback, go_live, refusal

ACCEPTED = feedback_pb2.FEEDBACK_STATUS_ACCEPTED
DUPLICATE = feedback_pb2.FEEDBACK_STATUS_DUPLICATE


def signed(ids: PredictionIds, **fields: Any) -> str:
    defaults: dict[str, Any] = {
        "time_s": time.time(),
        "model": "tiny",
        "version": 1,
        "action": "cat",
        "propensity": 0.5,
    }
    return ids.sign(SignedPrediction(**(defaults | fields)))


@pytest.mark.parametrize(
    ("fields", "signal"),
    [
        ({"thumb": feedback_pb2.THUMB_UP}, Thumb(up=True)),
        ({"thumb": feedback_pb2.THUMB_DOWN}, Thumb(up=False)),
        ({"rating": 0.0}, Rating(0.0)),
        ({"correction": "dog"}, Correction("dog")),
        ({"preference": feedback_pb2.Preference(preferred="dog", rejected="cat")}, Preference("dog", "cat")),
        (
            {"implicit": feedback_pb2.Implicit(kind=feedback_pb2.IMPLICIT_KIND_REPHRASED)},
            Implicit(ImplicitKind.REPHRASED),
        ),
        ({"retract": feedback_pb2.Retract(feedback_id="f0")}, Retract("f0")),
        ({"retract": feedback_pb2.Retract()}, Retract()),
    ],
)
async def test_every_signal_is_in_the_log_when_it_is_answered(
    serve: Serve, log: SqliteLog, fields: dict[str, Any], signal: Signal
) -> None:
    running = await serve()
    prediction = await running.predict()
    before_s = time.time()
    answer = await running.feedback.SendFeedback(a_thumb(prediction.prediction_id, "f1", **fields))
    (found,) = feedback(log)
    assert (answer.feedback_id, answer.status) == ("f1", ACCEPTED)
    assert (found.feedback_id, found.prediction_id, found.user_id) == ("f1", prediction.prediction_id, "ada")
    assert found.signal == signal
    assert before_s - 1e-6 <= found.time_s <= time.time()
    kind = type(signal).__name__.lower()
    assert running.metric("plaudit_serving_feedback_total", kind=kind, status="accepted") == 1


async def test_the_same_id_again_records_nothing(serve: Serve, log: SqliteLog, ids: PredictionIds) -> None:
    running = await serve()
    first = await running.feedback.SendFeedback(a_thumb(signed(ids), "f1"))
    again = await running.feedback.SendFeedback(a_thumb(signed(ids), "f1", rating=0.2))
    assert (first.status, again.status) == (ACCEPTED, DUPLICATE)
    assert [found.signal for found in feedback(log)] == [Thumb(up=True)]


async def test_feedback_on_a_prediction_that_was_never_logged_is_taken(
    serve: Serve, log: SqliteLog, ids: PredictionIds
) -> None:
    """The signature says that the prediction was made; whether its decision arrives is the learner's to see."""
    running = await serve()
    assert (await running.feedback.SendFeedback(a_thumb(signed(ids), "f1"))).status == ACCEPTED


def forged(ids: PredictionIds) -> str:
    genuine = signed(ids)
    return genuine[:-1] + ("A" if genuine[-1] != "A" else "B")


INVALID = grpc.StatusCode.INVALID_ARGUMENT
WRONG: dict[str, tuple[Callable[[PredictionIds], feedback_pb2.SendFeedbackRequest], grpc.StatusCode, str]] = {
    "forged": (lambda ids: a_thumb(forged(ids), "f1"), INVALID, "was not signed by this service"),
    "foreign": (
        lambda ids: a_thumb(signed(PredictionIds(b"x" * 32, 3600.0)), "f1"),
        INVALID,
        "was not signed by this service",
    ),
    "nonsense": (lambda ids: a_thumb("ünsinn", "f1"), INVALID, "prediction_id: 'ünsinn' is not a prediction id"),
    "no prediction": (lambda ids: a_thumb("", "f1"), INVALID, "prediction_id: is empty"),
    "expired": (
        lambda ids: a_thumb(signed(ids, time_s=time.time() - 3700), "f1"),
        grpc.StatusCode.FAILED_PRECONDITION,
        "s old; feedback is accepted for 3600 s",
    ),
    "another model": (lambda ids: a_thumb(signed(ids, model="other"), "f1"), INVALID, "is of the model 'other'"),
    "no id": (lambda ids: a_thumb(signed(ids), ""), INVALID, "feedback_id: is empty"),
    "a long id": (lambda ids: a_thumb(signed(ids), "x" * 129), INVALID, "has 129 characters; at most 128"),
    "no signal": (
        lambda ids: feedback_pb2.SendFeedbackRequest(prediction_id=signed(ids), feedback_id="f1"),
        INVALID,
        "signal: is missing; set one of thumb",
    ),
    "no thumb": (lambda ids: a_thumb(signed(ids), "f1", thumb=0), INVALID, "thumb: 0 is neither"),
    "a great rating": (lambda ids: a_thumb(signed(ids), "f1", rating=1.5), INVALID, "rating: 1.5 is not in [0, 1]"),
    "no number": (lambda ids: a_thumb(signed(ids), "f1", rating=float("nan")), INVALID, "rating: nan is not in"),
    "an unknown correction": (
        lambda ids: a_thumb(signed(ids), "f1", correction="cow"),
        INVALID,
        "correction: 'cow' is not an action of 'tiny'",
    ),
    "an unknown preference": (
        lambda ids: a_thumb(signed(ids), "f1", preference=feedback_pb2.Preference(preferred="cat", rejected="cow")),
        INVALID,
        "preference.rejected: 'cow'",
    ),
    "no preference": (
        lambda ids: a_thumb(signed(ids), "f1", preference=feedback_pb2.Preference(preferred="cat", rejected="cat")),
        INVALID,
        "preference: prefers 'cat' over itself",
    ),
    "an unknown kind": (
        lambda ids: a_thumb(signed(ids), "f1", implicit=feedback_pb2.Implicit()),
        INVALID,
        "implicit.kind: 0 is not a known kind",
    ),
    "a long id to retract": (
        lambda ids: a_thumb(signed(ids), "f1", retract=feedback_pb2.Retract(feedback_id="x" * 129)),
        INVALID,
        "retract.feedback_id: ",
    ),
}


async def test_wrong_feedback_is_named_and_not_recorded(serve: Serve, log: SqliteLog, ids: PredictionIds) -> None:
    running = await serve()
    for make, code, complaint in WRONG.values():
        found, details = await refusal(running.feedback.SendFeedback(make(ids)))
        assert (found, complaint in details) == (code, True), details
    assert feedback(log) == []
    assert running.metric("plaudit_serving_feedback_total", kind="preference", status="refused") == 2


async def test_a_stream_answers_in_order_and_survives_wrong_requests(
    serve: Serve, log: SqliteLog, ids: PredictionIds
) -> None:
    running = await serve()
    requests = [a_thumb(signed(ids), f"f{i}") for i in range(100)]
    requests[10] = a_thumb("forged", "f10")
    requests[20] = a_thumb(signed(ids), "f19")
    answers = [answer async for answer in running.feedback.StreamFeedback(iter(requests))]
    assert [answer.feedback_id for answer in answers] == [request.feedback_id for request in requests]
    refused = answers.pop(10)
    assert (refused.status, refused.error.code) == (feedback_pb2.FEEDBACK_STATUS_UNSPECIFIED, INVALID.value[0])
    assert "prediction_id: 'forged'" in refused.error.message
    assert [answer.status for answer in answers] == [DUPLICATE if i == 19 else ACCEPTED for i in range(99)]
    assert len(feedback(log)) == 98


class CountingLog:
    """A log that counts its appends."""

    def __init__(self, log: SqliteLog) -> None:
        self._log = log
        self.appends = 0

    def append(self, events: Sequence[Event]) -> Sequence[AppendOutcome]:
        self.appends += 1
        return self._log.append(events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


class AwayLog(CountingLog):
    """A log that cannot make anything durable."""

    def append(self, events: Sequence[Event]) -> Sequence[AppendOutcome]:
        raise LogUnavailable("the disk is full")


async def test_what_comes_at_once_shares_a_disk_flush(serve: Serve, log: SqliteLog, ids: PredictionIds) -> None:
    counting = CountingLog(log)
    running = await serve(log=counting)
    answers = await asyncio.gather(*(running.feedback.SendFeedback(a_thumb(signed(ids), f"f{i}")) for i in range(100)))
    assert {answer.status for answer in answers} == {ACCEPTED}
    assert counting.appends < 100
    times = [found.time_s for found in feedback(log)]
    assert times == sorted(times)


class PickyLog(CountingLog):
    """A log that one piece of feedback is too large for, and that breaks down on another."""

    def append(self, events: Sequence[Event]) -> Sequence[AppendOutcome]:
        self.appends += 1
        if any(isinstance(event, Feedback) and event.feedback_id == "f7" for event in events):
            raise RuntimeError("a bug that an event finds")
        large = InvalidInput("feedback 'f5'", "is too large")
        return [
            large if isinstance(event, Feedback) and event.feedback_id == "f5" else self._log.append([event])[0]
            for event in events
        ]


async def test_each_piece_of_feedback_has_an_outcome_of_its_own(
    serve: Serve, log: SqliteLog, ids: PredictionIds
) -> None:
    """A stranger's feedback id stood in the error of whoever shared a batch with it."""
    running = await serve(log=PickyLog(log))
    sent = [running.feedback.SendFeedback(a_thumb(signed(ids), f"f{i}")) for i in range(20)]
    answers = await asyncio.gather(*sent, return_exceptions=True)
    refused = {f"f{i}": answer for i, answer in enumerate(answers) if isinstance(answer, grpc.aio.AioRpcError)}
    assert {id_: error.code() for id_, error in refused.items()} == {
        "f5": grpc.StatusCode.INVALID_ARGUMENT,
        "f7": grpc.StatusCode.INTERNAL,
    }
    assert {found.feedback_id for found in feedback(log)} == {f"f{i}" for i in range(20) if i not in (5, 7)}


async def test_a_log_that_is_away_is_no_lie(serve: Serve, log: SqliteLog, ids: PredictionIds) -> None:
    running = await serve(log=AwayLog(log), drain_s=0.01)
    code, details = await refusal(running.feedback.SendFeedback(a_thumb(signed(ids), "f1")))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "may not be recorded; send it again" in details
    assert (await running.predict()).action  # predictions go on
    (answer,) = [answer async for answer in running.feedback.StreamFeedback(iter([a_thumb(signed(ids), "f1")]))]
    assert answer.error.code == grpc.StatusCode.UNAVAILABLE.value[0]


# --- receipts --------------------------------------------------------------------------------------------------------


async def test_a_receipt_follows_feedback_from_the_log_into_the_live_version(
    serve: Serve, registry: DirectoryRegistry, log: SqliteLog, ids: PredictionIds, tmp_path: Path
) -> None:
    running = await serve()
    await running.feedback.SendFeedback(a_thumb(signed(ids), "f1"))
    ask = feedback_pb2.GetReceiptRequest(feedback_id="f1")
    (found,) = feedback(log)

    receipt = await running.feedback.GetReceipt(ask)
    assert (receipt.state, receipt.used_in_version) == (feedback_pb2.RECEIPT_STATE_RECORDED, 0)
    assert receipt.recorded_at.ToMicroseconds() == round(found.time_s * 1e6)
    assert not receipt.HasField("live_since")

    def refresh(name: str, last_feedback_time_s: float) -> int:
        data = {"last_feedback_time_s": last_feedback_time_s}
        tiny_head_refresh(tmp_path / name, registry.folder(1), prefer="dog", data=data)
        return registry.publish(tmp_path / name).version

    refresh("before", found.time_s - 1e-6)
    assert (await running.feedback.GetReceipt(ask)).state == feedback_pb2.RECEIPT_STATE_RECORDED

    with_it = refresh("with", found.time_s)
    refresh("after", found.time_s + 1.0)
    receipt = await running.feedback.GetReceipt(ask)
    assert (receipt.state, receipt.used_in_version) == (feedback_pb2.RECEIPT_STATE_USED, with_it)

    go_live(registry, with_it)
    receipt = await running.feedback.GetReceipt(ask)
    assert (receipt.state, receipt.used_in_version) == (feedback_pb2.RECEIPT_STATE_LIVE, with_it)
    assert receipt.live_since.seconds == 1_700_000_000


class LearnerStatuses:
    """What the learners make of feedback, as the test says."""

    def __init__(self) -> None:
        self.statuses: dict[str, FeedbackStatus] = {}
        self.problem: Exception | None = None

    def feedback_status(self, feedback_id: str) -> FeedbackStatus | None:
        if self.problem is not None:
            raise self.problem
        return self.statuses.get(feedback_id)


async def test_a_receipt_says_what_the_learner_made_of_it(
    serve: Serve, registry: DirectoryRegistry, ids: PredictionIds, tmp_path: Path
) -> None:
    """Joined in the third batch, so learned by the first version that had taken in three."""
    learner = LearnerStatuses()
    running = await serve(statuses=lambda model: learner)
    await running.feedback.SendFeedback(a_thumb(signed(ids), "f1"))

    async def receipt() -> feedback_pb2.Receipt:
        request = feedback_pb2.GetReceiptRequest(feedback_id="f1")
        answer: feedback_pb2.Receipt = await running.feedback.GetReceipt(request)
        return answer

    assert (await receipt()).state == feedback_pb2.RECEIPT_STATE_RECORDED
    for status, state, reason in (
        (
            FeedbackStatus(FeedbackState.WAITING, NOW_S, "", 1),
            feedback_pb2.RECEIPT_STATE_RECORDED,
            "its decision has not arrived",
        ),
        (FeedbackStatus(FeedbackState.DISCARDED, NOW_S, "no", 1), feedback_pb2.RECEIPT_STATE_DISCARDED, "no"),
        (FeedbackStatus(FeedbackState.JOINED, NOW_S, "", 3), feedback_pb2.RECEIPT_STATE_JOINED, ""),
    ):
        learner.statuses["f1"] = status
        found = await receipt()
        assert (found.state, found.reason, found.used_in_version) == (state, reason, 0)

    def refresh(batches: int) -> int:
        folder = tmp_path / f"refresh-{batches}"
        tiny_head_refresh(folder, registry.folder(1), prefer="dog", data={"batches": batches})
        return registry.publish(folder).version

    refresh(2)
    assert (await receipt()).state == feedback_pb2.RECEIPT_STATE_JOINED
    with_it = refresh(3)
    found = await receipt()
    assert (found.state, found.used_in_version) == (feedback_pb2.RECEIPT_STATE_USED, with_it)
    go_live(registry, refresh(4))
    found = await receipt()
    assert (found.state, found.used_in_version) == (feedback_pb2.RECEIPT_STATE_LIVE, with_it)
    learner.statuses["f1"] = FeedbackStatus(FeedbackState.JOINED, NOW_S, "", 3, excluded=True)
    found = await receipt()
    assert (found.state, found.reason[:9]) == (feedback_pb2.RECEIPT_STATE_DISCARDED, "excluded:")


async def test_a_receipt_of_what_only_the_learner_remembers(serve: Serve) -> None:
    """A log need not find old feedback by its id; the learner's store does."""
    learner = LearnerStatuses()
    running = await serve(statuses=lambda model: learner)
    learner.statuses["old"] = FeedbackStatus(FeedbackState.JOINED, NOW_S, "", 3)
    found = await running.feedback.GetReceipt(feedback_pb2.GetReceiptRequest(feedback_id="old"))
    assert (found.state, found.recorded_at.seconds) == (feedback_pb2.RECEIPT_STATE_JOINED, int(NOW_S))


async def test_a_receipt_says_what_it_can_when_the_store_is_away(serve: Serve, ids: PredictionIds) -> None:
    learner = LearnerStatuses()
    learner.problem = StoreUnavailable("no route to host")
    running = await serve(statuses=lambda model: learner)
    await running.feedback.SendFeedback(a_thumb(signed(ids), "f1"))
    found = await running.feedback.GetReceipt(feedback_pb2.GetReceiptRequest(feedback_id="f1"))
    assert found.state == feedback_pb2.RECEIPT_STATE_RECORDED


@pytest.mark.parametrize(
    ("feedback_id", "code"), [("never", grpc.StatusCode.NOT_FOUND), ("", INVALID), ("x" * 129, INVALID)]
)
async def test_a_receipt_for_what_was_never_recorded(serve: Serve, feedback_id: str, code: grpc.StatusCode) -> None:
    running = await serve()
    found, details = await refusal(running.feedback.GetReceipt(feedback_pb2.GetReceiptRequest(feedback_id=feedback_id)))
    assert found is code
    assert details.startswith("feedback_id: ")

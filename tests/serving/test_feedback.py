"""FeedbackService over a real channel: durable when answered, refused with a reason, and what receipts say."""

from __future__ import annotations

import asyncio
import shutil
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
from support.builders import NOW_S, tiny_bundle, tiny_head_refresh
from support.serving_harness import CHANGE, Serve, a_thumb, feedback, go_live, refusal

ACCEPTED = feedback_pb2.FEEDBACK_STATUS_ACCEPTED
DUPLICATE = feedback_pb2.FEEDBACK_STATUS_DUPLICATE
JOINED = feedback_pb2.RECEIPT_STATE_JOINED
DISCARDED = feedback_pb2.RECEIPT_STATE_DISCARDED


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
    piece = a_thumb(signed(ids), "f1")
    first = await running.feedback.SendFeedback(piece)
    again = await running.feedback.SendFeedback(piece)
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
    requests[20] = requests[19]
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


class LearnerStatuses:
    """What the learners make of feedback, as the test says."""

    def __init__(self) -> None:
        self.statuses: dict[str, FeedbackStatus] = {}
        self.problem: Exception | None = None

    def feedback_status(self, feedback_id: str) -> FeedbackStatus | None:
        if self.problem is not None:
            raise self.problem
        return self.statuses.get(feedback_id)


async def test_a_receipt_follows_feedback_from_the_log_into_the_live_version(
    serve: Serve, registry: DirectoryRegistry, log: SqliteLog, ids: PredictionIds, tmp_path: Path
) -> None:
    """Joined in the third batch of a store, so learned by the versions that had taken in three of that store."""
    learner = LearnerStatuses()
    running = await serve(statuses=lambda model: learner)
    await running.feedback.SendFeedback(a_thumb(signed(ids), "f1"))
    (found,) = feedback(log)

    async def receipt() -> feedback_pb2.Receipt:
        request = feedback_pb2.GetReceiptRequest(feedback_id="f1")
        answer: feedback_pb2.Receipt = await running.feedback.GetReceipt(request)
        return answer

    first = await receipt()
    assert (first.state, first.used_in_version) == (feedback_pb2.RECEIPT_STATE_RECORDED, 0)
    assert first.recorded_at.ToMicroseconds() == round(found.time_s * 1e6)
    for status, state, reason in (
        (
            FeedbackStatus(FeedbackState.WAITING, NOW_S, "", 1, store_id="a"),
            feedback_pb2.RECEIPT_STATE_RECORDED,
            "its decision has not arrived",
        ),
        (FeedbackStatus(FeedbackState.DISCARDED, NOW_S, "no", 1, store_id="a"), DISCARDED, "no"),
        (FeedbackStatus(FeedbackState.JOINED, NOW_S, "", 3, store_id="a"), JOINED, ""),
    ):
        learner.statuses["f1"] = status
        answer = await receipt()
        assert (answer.state, answer.reason, answer.used_in_version) == (state, reason, 0)

    refreshed(registry, tmp_path, batches=2)
    assert (await receipt()).state == JOINED
    with_it = refreshed(registry, tmp_path, batches=3)
    assert ((answer := await receipt()).state, answer.used_in_version) == (feedback_pb2.RECEIPT_STATE_USED, with_it)
    assert not answer.HasField("live_since")
    go_live(registry, refreshed(registry, tmp_path, batches=4))
    answer = await receipt()
    assert (answer.state, answer.used_in_version) == (feedback_pb2.RECEIPT_STATE_LIVE, with_it)
    assert answer.live_since.seconds == 1_700_000_000
    learner.statuses["f1"] = FeedbackStatus(FeedbackState.JOINED, NOW_S, "", 3, excluded=True, store_id="a")
    answer = await receipt()
    assert (answer.state, answer.reason[:9]) == (DISCARDED, "excluded:")


def refreshed(registry: DirectoryRegistry, tmp_path: Path, **data: Any) -> int:
    """A head refresh by the learner of store "a", unless ``data`` says another."""
    folder = tmp_path / f"refresh-{len(list(tmp_path.iterdir()))}"
    tiny_head_refresh(folder, registry.folder(1), prefer="dog", data={"store_id": "a"} | data)
    return registry.publish(folder).version


async def test_a_receipt_claims_nothing_of_versions_of_another_store(
    serve: Serve, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    """The registry was kept and the store lost: the versions there had read any number of batches, of other feedback.

    So it is with versions that do not say which store they were learned in.
    """
    learner = LearnerStatuses()
    learner.statuses["f1"] = FeedbackStatus(FeedbackState.JOINED, NOW_S, "", 3, store_id="new")
    running = await serve(statuses=lambda model: learner)
    go_live(registry, refreshed(registry, tmp_path, batches=500))
    tiny_head_refresh(tmp_path / "says nothing", registry.folder(1), prefer="dog", data={"batches": 500})
    go_live(registry, registry.publish(tmp_path / "says nothing").version)
    request = feedback_pb2.GetReceiptRequest(feedback_id="f1")
    answer = await running.feedback.GetReceipt(request)
    assert (answer.state, answer.used_in_version, answer.HasField("live_since")) == (JOINED, 0, False)
    go_live(registry, refreshed(registry, tmp_path, batches=3, store_id="new"))
    answer = await running.feedback.GetReceipt(request)
    assert (answer.state, answer.used_in_version) == (feedback_pb2.RECEIPT_STATE_LIVE, registry.rollout().live)


async def test_a_receipt_does_not_take_a_later_version_for_one_that_learned(
    serve: Serve, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    """A head that never went live has learned from it; a version imported after it, which is live, has not."""
    learner = LearnerStatuses()
    learner.statuses["f1"] = FeedbackStatus(FeedbackState.JOINED, NOW_S, "", 3, store_id="a")
    running = await serve(statuses=lambda model: learner)
    overtaken = refreshed(registry, tmp_path, batches=3)
    tiny_bundle(tmp_path / "other", seed=7, kind="imported")
    go_live(registry, registry.publish(tmp_path / "other").version)
    request = feedback_pb2.GetReceiptRequest(feedback_id="f1")
    answer = await running.feedback.GetReceipt(request)
    assert (answer.state, answer.used_in_version) == (feedback_pb2.RECEIPT_STATE_USED, overtaken)
    # Once it goes live after all, the ledger's order of numbers no longer says when.
    go_live(registry, overtaken)
    answer = await running.feedback.GetReceipt(request)
    assert (answer.state, answer.HasField("live_since")) == (feedback_pb2.RECEIPT_STATE_LIVE, False)


async def test_a_receipt_does_not_say_that_a_version_was_live_before_the_feedback_was_given(
    serve: Serve, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    """Clocks of two machines differ: the rollout is stamped by the one, the feedback by the other."""
    learner = LearnerStatuses()
    late_s = CHANGE.time_s + 3215.0
    learner.statuses["f1"] = FeedbackStatus(FeedbackState.JOINED, late_s, "", 3, store_id="a")
    running = await serve(statuses=lambda model: learner)
    go_live(registry, refreshed(registry, tmp_path, batches=3))
    answer = await running.feedback.GetReceipt(feedback_pb2.GetReceiptRequest(feedback_id="f1"))
    assert (answer.state, answer.HasField("live_since")) == (feedback_pb2.RECEIPT_STATE_LIVE, False)


async def test_a_receipt_says_what_it_can_when_the_registry_is_away(
    serve: Serve, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    learner = LearnerStatuses()
    learner.statuses["f1"] = FeedbackStatus(FeedbackState.JOINED, NOW_S, "", 3, store_id="a")
    running = await serve(statuses=lambda model: learner)
    shutil.rmtree(tmp_path / "registry")
    answer = await running.feedback.GetReceipt(feedback_pb2.GetReceiptRequest(feedback_id="f1"))
    assert answer.state == JOINED


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


# --- who may rate ----------------------------------------------------------------------------------------------------


async def test_strangers_cannot_rate_the_answer_that_another_user_got(serve: Serve, log: SqliteLog) -> None:
    running = await serve()
    asked = await running.predict(user_id="bob")
    for number in range(50):
        piece = a_thumb(asked.prediction_id, f"m{number}")
        piece.user_id = f"sybil-{number}" if number else ""
        code, text = await refusal(running.feedback.SendFeedback(piece))
        assert (code, "feedback.raters" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)
    assert feedback(log) == []
    piece = a_thumb(asked.prediction_id, "f1")
    piece.user_id = "bob"
    assert (await running.feedback.SendFeedback(piece)).status == ACCEPTED


async def test_anyone_may_rate_where_it_is_so_set(serve: Serve) -> None:
    running = await serve(raters="anyone")
    asked = await running.predict(user_id="bob")
    assert (await running.feedback.SendFeedback(a_thumb(asked.prediction_id, "f1"))).status == ACCEPTED


async def test_a_user_gives_sixteen_pieces_on_a_prediction_and_no_more(
    serve: Serve, log: SqliteLog, ids: PredictionIds
) -> None:
    running = await serve()
    prediction, other = signed(ids), signed(ids)
    for number in range(16):
        piece = a_thumb(prediction, f"f{number}")
        assert (await running.feedback.SendFeedback(piece)).status == ACCEPTED
        assert (await running.feedback.SendFeedback(piece)).status == DUPLICATE
    code, text = await refusal(running.feedback.SendFeedback(a_thumb(prediction, "f16")))
    assert (code, "16 pieces" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    assert (await running.feedback.SendFeedback(a_thumb(other, "f17"))).status == ACCEPTED
    assert len(feedback(log)) == 17


@pytest.mark.parametrize("change", [{"rating": 0.2}, {"user_id": "bob"}, {"prediction_id": None}])
async def test_an_id_that_is_used_for_something_else_is_told(
    serve: Serve, log: SqliteLog, ids: PredictionIds, change: dict[str, Any]
) -> None:
    """Who was first keeps the id; whoever comes second is told instead of losing the feedback in silence."""
    running = await serve()
    piece = a_thumb(signed(ids), "f1")
    await running.feedback.SendFeedback(piece)
    for name, value in change.items():
        setattr(piece, name, signed(ids) if value is None else value)
    code, text = await refusal(running.feedback.SendFeedback(piece))
    assert (code, "an id of its own" in text) == (grpc.StatusCode.ALREADY_EXISTS, True)
    assert len(feedback(log)) == 1

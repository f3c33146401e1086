"""The use case of feedback: check it, make it durable, acknowledge it; later, a receipt. Knows no transport."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Literal

import structlog

from plaudit.core.errors import (
    InvalidInput,
    InvalidPredictionId,
    NotTheAsker,
    OtherFeedback,
    PlauditError,
    TooMuchFeedback,
    UnknownFeedback,
    UnknownVersion,
)
from plaudit.core.events import Correction, Feedback, Preference, Retract, Signal
from plaudit.core.experience import FeedbackState
from plaudit.core.limits import MAX_COUNTED_PREDICTIONS, MAX_FEEDBACK_PER_PREDICTION
from plaudit.core.ports.log import Appended
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import FeedbackStatus, StatusReaders
from plaudit.core.prediction_id import PredictionIds, SignedPrediction
from plaudit.core.rollout import Rollout
from plaudit.core.text.identifiers import check_given_id, check_id
from plaudit.core.tracing import Tracing
from plaudit.serving.engine.admission import Admission
from plaudit.serving.engine.appending import append_each
from plaudit.serving.engine.batcher import Batcher, results
from plaudit.serving.engine.call_context import NO_DEADLINE, CallContext
from plaudit.serving.models.live_model import LiveModel
from plaudit.serving.models.served_models import ServedModels
from plaudit.serving.telemetry.appends import Append
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit_models.bundle import CorruptBundle

_MAX_BATCH: Final = 256
_QUEUE_LIMIT: Final = 4096
_MAX_LOOK_UPS: Final = 8
"""In the ledger, for one receipt."""

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FeedbackRequest:
    """Signal of a user about one prediction."""

    feedback_id: str
    prediction_id: str
    user_id: str
    signal: Signal


class ReceiptState(StrEnum):
    RECORDED = "recorded"
    JOINED = "joined"
    DISCARDED = "discarded"
    USED = "used"
    LIVE = "live"


@dataclass(frozen=True, slots=True)
class FeedbackReceipt:
    """State of a piece of feedback on its way into a version.

    Attributes:
        used_in_version: the first version still in the registry that is known to have learned from it.
        live_since_s: when such a version first went live, UTC seconds; None if none has, or it is not known when.
    """

    feedback_id: str
    state: ReceiptState
    recorded_at_s: float
    used_in_version: int | None = None
    live_since_s: float | None = None
    reason: str = ""


class FeedbackCounts:
    """Ids of each user's feedback on each prediction, of the latest of them. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: OrderedDict[tuple[str, str], set[str]] = OrderedDict()

    def take(self, request: FeedbackRequest) -> None:
        """Count a piece, unless it was counted before. Raises TooMuchFeedback."""
        place = (request.prediction_id, request.user_id)
        with self._lock:
            ids = self._ids.setdefault(place, set())
            self._ids.move_to_end(place)
            if len(self._ids) > MAX_COUNTED_PREDICTIONS:
                self._ids.popitem(last=False)
            if request.feedback_id in ids:
                return
            if len(ids) >= MAX_FEEDBACK_PER_PREDICTION:
                raise TooMuchFeedback(MAX_FEEDBACK_PER_PREDICTION)
            ids.add(request.feedback_id)

    def give_back(self, request: FeedbackRequest) -> None:
        """Count a piece no more, as it was not recorded."""
        with self._lock:
            self._ids.get((request.prediction_id, request.user_id), set()).discard(request.feedback_id)


class FeedbackUseCase:
    """Runs on its calls' threads; one thread appends for all of them.

    Args:
        append: of the event log.
        recorded_at_s: of the event log: when a piece of feedback was recorded, None if it was not.
        statuses: what the learners made of feedback; None: receipts say what the log knows.
        raters: who may give feedback on a prediction: who asked for it, or anyone.
    """

    def __init__(
        self,
        models: ServedModels,
        append: Append,
        recorded_at_s: Callable[[str], float | None],
        ids: PredictionIds,
        metrics: ServingMetrics,
        *,
        statuses: StatusReaders | None,
        tracing: Tracing,
        raters: Literal["asker", "anyone"],
    ) -> None:
        self._models = models
        self._append = append
        self._recorded_at_s = recorded_at_s
        self._ids = ids
        self._metrics = metrics
        self._statuses = statuses
        self._tracing = tracing
        self._raters = raters
        self._given = FeedbackCounts()
        self._admission = Admission("the queue of feedback", _QUEUE_LIMIT)
        self._writer: Batcher[tuple[FeedbackRequest, str], Appended] = Batcher(
            [self._append_all], name="feedback", max_batch=lambda: _MAX_BATCH
        )

    def start(self) -> None:
        self._writer.start()

    def close(self) -> None:
        """Everything that was taken in is durable after this."""
        self._writer.close()

    def send(self, request: FeedbackRequest, call: CallContext = NO_DEADLINE) -> bool:
        """Returns when the feedback is durable; True if its id was recorded before, so that nothing was added.

        Raises:
            InvalidInput, ExpiredPredictionId, NotTheAsker, TooMuchFeedback: it is refused.
            OtherFeedback: its id was used for other feedback; nothing was recorded.
            Overloaded, Expired: nothing was recorded.
            LogUnavailable: it is not known to be; sending it again is safe.
        """
        (outcome,) = results(self.send_all([request], call))
        return outcome

    def send_all(
        self, requests: Sequence[FeedbackRequest], call: CallContext = NO_DEADLINE
    ) -> Sequence[bool | Exception]:
        """What :meth:`send` returns or raises, for each of them; they become durable together."""
        outcomes: list[bool | Exception] = [False] * len(requests)
        predictions: list[SignedPrediction | None] = [None] * len(requests)
        valid = []
        traceparent = self._tracing.present()
        if self._tracing.enabled and len(requests) == 1:
            (only,) = requests
            self._tracing.note({"plaudit.feedback_id": only.feedback_id, "plaudit.prediction_id": only.prediction_id})
        with self._metrics.feedback_ack_seconds.time():
            for place, request in enumerate(requests):
                try:
                    predictions[place] = self._check(request)
                except PlauditError as error:
                    outcomes[place] = error
                else:
                    valid.append(place)
            try:
                with self._admission.places(len(valid)):
                    appended = self._writer.submit([(requests[place], traceparent) for place in valid], call)
            except PlauditError as error:
                appended = [error] * len(valid)
        for place, each in zip(valid, appended, strict=True):
            outcomes[place] = _outcome(each, requests[place])
            if isinstance(outcomes[place], Exception):
                self._given.give_back(requests[place])
        for request, prediction, outcome in zip(requests, predictions, outcomes, strict=True):
            status = "refused" if isinstance(outcome, Exception) else "duplicate" if outcome else "accepted"
            model, version = ("", None) if prediction is None else (prediction.model, prediction.version)
            self._metrics.versions.feedback(model, version, type(request.signal).__name__.lower(), status).inc()
        return outcomes

    def receipt(self, feedback_id: str) -> FeedbackReceipt:
        """Raises UnknownFeedback if it was never recorded, InvalidInput if the id can be none."""
        check_given_id("feedback_id", feedback_id)
        for each in self._models.all():
            status = self._status(each.live.registry.model, feedback_id)
            if status is not None:
                return _receipt_of(feedback_id, status, each.live.registry)
        recorded_at_s = self._recorded_at_s(feedback_id)
        if recorded_at_s is None:
            raise UnknownFeedback(feedback_id)
        return FeedbackReceipt(feedback_id, ReceiptState.RECORDED, recorded_at_s)  # no learner has read it

    def _check(self, request: FeedbackRequest) -> SignedPrediction:
        """The prediction that the feedback is about, after it was counted.

        Raises:
            InvalidInput, ExpiredPredictionId, NotTheAsker, TooMuchFeedback: it is refused.
        """
        check_given_id("feedback_id", request.feedback_id)
        check_id("user_id", request.user_id)
        prediction = self._ids.check(request.prediction_id, now_s=time.time())
        served = self._models.get(prediction.model)
        if served is None:
            raise InvalidPredictionId(f"is of the model {prediction.model!r}; served here are {self._models.names()}")
        match request.signal:
            case Correction(action):
                _check_action("correction", action, prediction, served.live)
            case Preference(preferred, rejected):
                _check_action("preference.preferred", preferred, prediction, served.live)
                _check_action("preference.rejected", rejected, prediction, served.live)
                if preferred == rejected:
                    raise InvalidInput("preference", f"prefers {preferred!r} over itself")
            case Retract(feedback_id):
                check_id("retract.feedback_id", feedback_id)
        if self._raters == "asker" and not self._ids.is_asker(prediction, request.user_id):
            raise NotTheAsker(request.user_id)
        self._given.take(request)
        return prediction

    def _append_all(self, items: Sequence[tuple[FeedbackRequest, str]]) -> Sequence[Appended | Exception]:
        """One append, so one disk flush, for all that came while the last one ran; on the writer's thread.

        Each piece has an outcome of its own: what the log does not take of one client is no error of another.

        Feedback is stamped here, so that times in the log of one server never go back.
        """
        now_s = round(time.time() * 1e6) / 1e6  # the log has microseconds, and receipts must compare equal
        return append_each(
            self._append,
            [
                Feedback(r.feedback_id, r.prediction_id, now_s, r.user_id, r.signal, traceparent)
                for r, traceparent in items
            ],
        )

    def _status(self, model: str, feedback_id: str) -> FeedbackStatus | None:
        try:
            reader = None if self._statuses is None else self._statuses(model)
            return None if reader is None else reader.feedback_status(feedback_id)
        except PlauditError as error:
            logger.warning("feedback_status_unknown", problem=str(error))
            return None


def _outcome(appended: Appended | Exception, request: FeedbackRequest) -> bool | Exception:
    if isinstance(appended, Exception):
        return appended
    return OtherFeedback(request.feedback_id) if appended.other else appended.duplicate


def _receipt_of(feedback_id: str, status: FeedbackStatus, registry: ModelRegistry) -> FeedbackReceipt:
    receipt = FeedbackReceipt(feedback_id, ReceiptState.RECORDED, status.recorded_at_s)
    match status.state:
        case FeedbackState.WAITING:
            return replace(receipt, reason="its decision has not arrived")
        case FeedbackState.DISCARDED:
            return replace(receipt, state=ReceiptState.DISCARDED, reason=status.reason)
        case FeedbackState.JOINED if status.excluded:
            reason = "excluded: learning from it did harm, or its user is not, or no longer, learned from"
            return replace(receipt, state=ReceiptState.DISCARDED, reason=reason)
        case FeedbackState.JOINED:
            return _learned(replace(receipt, state=ReceiptState.JOINED), status, registry)


def _learned(receipt: FeedbackReceipt, status: FeedbackStatus, registry: ModelRegistry) -> FeedbackReceipt:
    """The receipt of joined feedback, with the versions that are known to have learned from it."""
    try:
        learned = _learned_by(status, registry)
        if not learned:
            return receipt
        receipt = replace(receipt, state=ReceiptState.USED, used_in_version=learned[0])
        first = _first_live(learned, registry)
        present = registry.rollout()
    except PlauditError as error:  # what is known without the registry can be said
        logger.warning("versions_of_feedback_unknown", model=registry.model, problem=str(error))
        return receipt
    if first is not None:
        # Where clocks of machines differ, the time may be one before the feedback was given.
        known_s = first.changed_at_s if first.changed_at_s >= receipt.recorded_at_s else None
        return replace(receipt, state=ReceiptState.LIVE, live_since_s=known_s)
    if not {present.live, present.previous, present.gated}.isdisjoint(learned):
        return replace(receipt, state=ReceiptState.LIVE)
    return receipt


def _learned_by(status: FeedbackStatus, registry: ModelRegistry) -> list[int]:
    """Versions that have learned from feedback of this status, oldest first.

    Batches are numbers of one store: a version that was made by the learner of another one is not known to have.
    """
    learned = []
    for version in registry.versions():
        try:
            data = registry.manifest(version).data
        except (UnknownVersion, CorruptBundle):
            continue  # pruned or changed since it was listed
        same_store = bool(status.store_id) and data.get("store_id") == status.store_id
        if same_store and data.get("batches", -1) >= status.batch:
            learned.append(version)
    return learned


def _first_live(learned: Sequence[int], registry: ModelRegistry) -> Rollout | None:
    """The first rollout that is known to have made one of the versions live."""
    wanted: int | None = learned[0]
    for _ in range(_MAX_LOOK_UPS):
        rollout = None if wanted is None else registry.first_live(wanted)
        if rollout is None or rollout.live is None or rollout.live in learned:
            return rollout
        live = rollout.live  # a version without this feedback, or one that was removed since
        wanted = next((version for version in learned if version > live), None)
    return None


def _check_action(field: str, action: str, prediction: SignedPrediction, live: LiveModel) -> None:
    """Raises InvalidInput. A request's dynamic actions are in the log alone, so the learner checks those when it
    joins.
    """
    if prediction.dynamic:
        if not action:
            raise InvalidInput(field, "is empty; name one of the request's dynamic actions by its id")
        check_id(field, action)
        return
    spec = live.serving().manifest.spec
    if not spec.has_action(action):
        raise InvalidInput(field, f"{action[:80]!r} is not an action of {spec.name!r}")

"""The use case of feedback: check it, make it durable, say so; later, say what became of it. Knows no transport."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import structlog

from plaudit.core.errors import InvalidInput, InvalidPredictionId, PlauditError, UnknownFeedback, UnknownVersion
from plaudit.core.events import Correction, Feedback, Preference, Retract, Signal
from plaudit.core.experience import FeedbackState
from plaudit.core.limits import MAX_ID_CHARACTERS
from plaudit.core.ports.log import Appended, EventLog
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import FeedbackStatus, FeedbackStatuses
from plaudit.core.prediction_id import PredictionIds, SignedPrediction
from plaudit.serving.engine.admission import Admission
from plaudit.serving.engine.batcher import NO_DEADLINE, Batcher, Caller
from plaudit.serving.models.live_model import LiveModel
from plaudit.serving.models.served_models import ServedModels
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit_models.bundle import CorruptBundle

_MAX_BATCH: Final = 256
_QUEUE_LIMIT: Final = 4096

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FeedbackRequest:
    """What a client says about one prediction."""

    feedback_id: str
    prediction_id: str
    user_id: str
    signal: Signal
    traceparent: str = ""


class ReceiptState(StrEnum):
    RECORDED = "recorded"
    JOINED = "joined"
    DISCARDED = "discarded"
    USED = "used"
    LIVE = "live"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a piece of feedback.

    Attributes:
        used_in_version: the first version there still is that has learned from it.
        live_since_s: when it, or a later version, went live, UTC seconds.
    """

    feedback_id: str
    state: ReceiptState
    recorded_at_s: float
    used_in_version: int | None = None
    live_since_s: float | None = None
    reason: str = ""


class FeedbackUseCase:
    """Runs on its callers' threads; one thread appends for all of them.

    Args:
        fates: what the learners made of feedback; None: receipts say what log and registry know.
        clock: UTC seconds since the epoch.
    """

    def __init__(
        self,
        models: ServedModels,
        log: EventLog,
        ids: PredictionIds,
        metrics: ServingMetrics,
        *,
        fates: FeedbackStatuses | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._models = models
        self._log = log
        self._ids = ids
        self._metrics = metrics
        self._fates = fates
        self._clock = clock
        self._admission = Admission("the queue of feedback", _QUEUE_LIMIT)
        self._writer: Batcher[FeedbackRequest, Appended] = Batcher(
            [self._append], name="feedback", max_batch=lambda: _MAX_BATCH
        )

    def start(self) -> None:
        self._writer.start()

    def close(self) -> None:
        """Everything that was taken in is durable after this."""
        self._writer.close()

    def send(self, request: FeedbackRequest, caller: Caller = NO_DEADLINE) -> bool:
        """Returns when the feedback is durable; True if its id was there before, so that nothing was added.

        Raises:
            InvalidInput, ExpiredPredictionId: it is refused.
            Overloaded, Expired: nothing was recorded.
            LogUnavailable: it is not known to be; sending it again is safe.
        """
        (outcome,) = self.send_all([request], caller)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def send_all(self, requests: Sequence[FeedbackRequest], caller: Caller = NO_DEADLINE) -> Sequence[bool | Exception]:
        """What :meth:`send` returns or raises, for each of them; they become durable together."""
        outcomes: list[bool | Exception] = [False] * len(requests)
        signed: list[SignedPrediction | None] = [None] * len(requests)
        fine = []
        with self._metrics.feedback_ack_seconds.time():
            for place, request in enumerate(requests):
                try:
                    signed[place] = self._check(request)
                except PlauditError as error:
                    outcomes[place] = error
                else:
                    fine.append(place)
            try:
                with self._admission.places(len(fine)):
                    appended = self._writer.submit([requests[place] for place in fine], caller)
            except PlauditError as error:
                appended = [error] * len(fine)
        for place, outcome in zip(fine, appended, strict=True):
            outcomes[place] = outcome if isinstance(outcome, Exception) else outcome.duplicate
        for request, of, result in zip(requests, signed, outcomes, strict=True):
            status = "refused" if isinstance(result, Exception) else "duplicate" if result else "accepted"
            model, version = ("", None) if of is None else (of.model, of.version)
            self._metrics.versions.heard(model, version, type(request.signal).__name__.lower(), status).inc()
        return outcomes

    def receipt(self, feedback_id: str) -> Receipt:
        """Raises UnknownFeedback if it was never recorded, InvalidInput if the id cannot be one."""
        _check_id("feedback_id", feedback_id)
        return self._receipt(feedback_id)

    def _check(self, request: FeedbackRequest) -> SignedPrediction:
        """The prediction it is about."""
        _check_id("feedback_id", request.feedback_id)
        prediction = self._ids.check(request.prediction_id, now_s=self._clock())
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
            case Retract(feedback_id) if len(feedback_id) > MAX_ID_CHARACTERS:
                raise InvalidInput("retract.feedback_id", _too_long(feedback_id))
        return prediction

    def _append(self, requests: Sequence[FeedbackRequest]) -> Sequence[Appended]:
        """On the writer's thread: one append, so one disk flush, for all that came while the last one ran.

        They get their time here, so that in the log of one server it never goes back.
        """
        now_s = round(self._clock() * 1e6) / 1e6  # what the log's microseconds will say, so that receipts compare equal
        return self._log.append(
            [Feedback(r.feedback_id, r.prediction_id, now_s, r.user_id, r.signal, r.traceparent) for r in requests]
        )

    def _receipt(self, feedback_id: str) -> Receipt:
        served = self._models.all()
        for each in served:
            fate = self._fate(each.live.registry.model, feedback_id)
            if fate is not None:
                return _receipt_of(feedback_id, fate, each.live.registry)
        recorded_at_s = self._log.feedback_recorded(feedback_id)
        if recorded_at_s is None:
            raise UnknownFeedback(feedback_id)
        recorded = Receipt(feedback_id, ReceiptState.RECORDED, recorded_at_s)
        if len(served) != 1 or self._fates is not None:
            return recorded  # no learner has read it, or we cannot tell which model's would
        return _learned(recorded, served[0].live.registry, "last_feedback_time_s", recorded_at_s)

    def _fate(self, model: str, feedback_id: str) -> FeedbackStatus | None:
        try:
            return None if self._fates is None else self._fates.fate(model, feedback_id)
        except PlauditError as problem:
            logger.warning("receipts cannot say what the learner made of feedback", problem=str(problem))
            return None


def _receipt_of(feedback_id: str, fate: FeedbackStatus, registry: ModelRegistry) -> Receipt:
    receipt = Receipt(feedback_id, ReceiptState.RECORDED, fate.recorded_at_s)
    match fate.state:
        case FeedbackState.WAITING:
            return replace(receipt, reason="its decision has not arrived")
        case FeedbackState.DISCARDED:
            return replace(receipt, state=ReceiptState.DISCARDED, reason=fate.reason)
        case FeedbackState.JOINED if fate.excluded:
            reason = "set aside: what was learned with it did harm, or its user is not, or no longer, learned from"
            return replace(receipt, state=ReceiptState.DISCARDED, reason=reason)
        case FeedbackState.JOINED:
            return _learned(replace(receipt, state=ReceiptState.JOINED), registry, "batches", fate.batch)


def _learned(receipt: Receipt, registry: ModelRegistry, clue: str, enough: float) -> Receipt:
    """The receipt of feedback that has been learned by versions whose data has at least ``enough`` of ``clue``."""
    used = _first_with(registry, clue, enough)
    if used is None:
        return receipt
    for rollout in registry.ledger():
        if rollout.live is not None and rollout.live >= used:
            return replace(receipt, state=ReceiptState.LIVE, used_in_version=used, live_since_s=rollout.changed_at_s)
    return replace(receipt, state=ReceiptState.USED, used_in_version=used)


def _first_with(registry: ModelRegistry, clue: str, enough: float) -> int | None:
    """The first version whose learner had taken in as much; its manifest says so."""
    for version in registry.versions():
        try:
            data = registry.manifest(version).data
        except (UnknownVersion, CorruptBundle):
            continue  # pruned since it was listed, or not for us to judge
        if data.get(clue, -math.inf) >= enough:
            return version
    return None


def _check_id(field: str, value: str) -> None:
    if not value:
        raise InvalidInput(field, f"is empty; give 1 to {MAX_ID_CHARACTERS} characters, such as a UUID")
    if len(value) > MAX_ID_CHARACTERS:
        raise InvalidInput(field, _too_long(value))


def _too_long(value: str) -> str:
    return f"{value[:20]!r}… has {len(value)} characters; at most {MAX_ID_CHARACTERS} are taken"


def _check_action(field: str, action: str, prediction: SignedPrediction, live: LiveModel) -> None:
    """The dynamic actions of a request are in the log alone: whoever joins feedback there sees whether it names one."""
    if prediction.dynamic:
        if not action:
            raise InvalidInput(field, "is empty; name one of the request's dynamic actions by its id")
        if len(action) > MAX_ID_CHARACTERS:
            raise InvalidInput(field, _too_long(action))
        return
    spec = live.serving().manifest.spec
    if not spec.has_action(action):
        raise InvalidInput(field, f"{action[:80]!r} is not an action of {spec.name!r}")

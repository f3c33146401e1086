"""Events of the log, and the content inside them.

Knows nothing about protobuf (see wire.py) or the storage of events (see ports/log.py).

Notation:
    d: embedding size, a: number of actions, k: number of dynamic actions
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from plaudit.core.rollout import Rollout


@dataclass(frozen=True, slots=True)
class EncodedContent:
    """Encoded image or sound, as the client sent it."""

    kind: Literal["image", "audio"]
    data: bytes


@dataclass(frozen=True, slots=True)
class TextContent:
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class TensorContent:
    """Tensor without the batch axis, float32 or int64."""

    array: npt.NDArray[np.float32] | npt.NDArray[np.int64]


Content = EncodedContent | TextContent | TensorContent


class Role(StrEnum):
    """Role of a version when it answered."""

    LIVE = "live"
    CANDIDATE = "candidate"


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Output of the trunk for one content.

    Attributes:
        trunk_digest: digest of the trunk; features of different trunks must not be mixed.
        embedding: float32 ``[d]``.
        base_logits: float32 ``[a]``; ``[k]``, in their order, for a decision over dynamic actions.
    """

    trunk_digest: str
    embedding: npt.NDArray[np.float32]
    base_logits: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DynamicAction:
    """Action of one request: ``id`` names it in the answer, ``text`` is what it is scored by."""

    id: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """A logged prediction.

    Attributes:
        time_s: UTC seconds since the epoch.
        propensity: probability with which ``action`` was picked, exploration included.
        allowed_actions: actions it was picked from; empty means all of the model's.
        features: absent only for models whose trunk gives none.
        content: by modality name, as sent; empty where the server does not log it.
        traceparent: W3C trace context of the Predict call; "" if that was not traced.
        dynamic_actions: of the request, in its order; empty means that ``action`` is one of the model's. Otherwise
            ``action`` is the id of one of them, and ``features.base_logits`` is ``[k]``.
        user_group: label of the user's group (see :mod:`plaudit.core.text.user_groups`); "" if none was given.
    """

    prediction_id: str
    model: str
    time_s: float
    user_id: str
    version: int
    version_digest: str
    role: Role
    action: str
    propensity: float
    allowed_actions: tuple[str, ...] = ()
    greedy: bool = False
    request_id: str = ""
    features: Features | None = None
    content: Mapping[str, Content] = field(default_factory=dict)
    traceparent: str = ""
    dynamic_actions: tuple[DynamicAction, ...] = ()
    user_group: str = ""


class ImplicitKind(StrEnum):
    """Behaviour of a user after the answer."""

    REPHRASED = "rephrased"
    INTERRUPTED = "interrupted"
    ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True)
class Thumb:
    up: bool


@dataclass(frozen=True, slots=True)
class Rating:
    """``value`` in [0, 1]."""

    value: float


@dataclass(frozen=True, slots=True)
class Correction:
    """``action`` would have been right."""

    action: str


@dataclass(frozen=True, slots=True)
class Preference:
    preferred: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Implicit:
    kind: ImplicitKind


@dataclass(frozen=True, slots=True)
class Retract:
    """Retracts the feedback ``feedback_id``; empty: all of this user's feedback on the prediction."""

    feedback_id: str = ""


Signal = Thumb | Rating | Correction | Preference | Implicit | Retract


@dataclass(frozen=True, slots=True)
class Feedback:
    """One user signal about one decision.

    Attributes:
        feedback_id: idempotency key, chosen by the client; the only key.
        time_s: UTC seconds since the epoch, when the server received it.
        traceparent: W3C trace context of the SendFeedback call; "" if that was not traced. Not compared.
    """

    feedback_id: str
    prediction_id: str
    time_s: float
    user_id: str
    signal: Signal
    traceparent: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An unreadable record, kept with the reason."""

    source_topic: str
    source_position: str
    reason: str
    payload: bytes
    time_s: float


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of one arm of an experiment.

    Attributes:
        failed: number of requests without an answer: errors of the server and expired deadlines, not invalid requests.
        latencies: number of answers by duration; see :mod:`plaudit_models.evaluation.guards` for the buckets.
    """

    failed: int = 0
    latencies: tuple[int, ...] = ()

    @property
    def answered(self) -> int:
        return sum(self.latencies)


@dataclass(frozen=True, slots=True)
class ShadowAnswer:
    """Answer of a candidate in the shadow to a request that the live version answered.

    Attributes:
        prediction_id: of the answer that the client got.
        action: the candidate's most probable action; "" if it failed.
        agrees: True: the live version has the same most probable action.
        kl_nats: KL(live ‖ candidate) of the two policies, in nats.
        duration_s: seconds for decoding and evaluating the request.
        failure: reason why there is no answer; "" if there is one.
    """

    prediction_id: str
    action: str
    agrees: bool
    kl_nats: float
    duration_s: float
    failure: str = ""


@dataclass(frozen=True, slots=True)
class ExperimentReport:
    """Report of one inference service on an experiment, since its previous report.

    Attributes:
        replica: random id of the service, drawn anew for each experiment.
        number: number of the report, counted by the replica from 1.
        experiment: generation of the rollout with which the experiment began.
        version: the candidate.
        live, candidate: answers to the users that each of them serves.
        shadows: answers computed in the shadow.
        dropped: number of requests for which there was no capacity to compute one.
        problem: reason why the candidate does not run there; "" if it does.
    """

    replica: str
    number: int
    model: str
    experiment: int
    version: int
    time_s: float
    live: Answers = Answers()
    candidate: Answers = Answers()
    shadows: tuple[ShadowAnswer, ...] = ()
    dropped: int = 0
    problem: str = ""


Event = Decision | Feedback | DeadLetter | Rollout | ExperimentReport


class Topic(StrEnum):
    DECISIONS = "plaudit.decisions"
    FEEDBACK = "plaudit.feedback"
    DEAD_LETTER = "plaudit.dead-letter"
    VERSIONS = "plaudit.versions"
    EXPERIMENTS = "plaudit.experiments"


_TOPICS: Final[Mapping[type[Event], Topic]] = {
    Decision: Topic.DECISIONS,
    Feedback: Topic.FEEDBACK,
    DeadLetter: Topic.DEAD_LETTER,
    Rollout: Topic.VERSIONS,
    ExperimentReport: Topic.EXPERIMENTS,
}


def topic_of(event: Event) -> Topic:
    return _TOPICS[type(event)]


def key_of(event: Event) -> str:
    """Partition key of an event: a decision and its feedback share it."""
    match event:
        case Decision() | Feedback():
            return event.prediction_id
        case DeadLetter():
            return event.source_position
        case Rollout() | ExperimentReport():
            return event.model


def time_of(event: Event) -> float:
    """Time of an event, UTC seconds since the epoch."""
    return event.changed_at_s if isinstance(event, Rollout) else event.time_s


def event_id_of(event: Event) -> str:
    """Id of an event within its topic: appending one with the same id again is a duplicate."""
    match event:
        case Decision():
            return event.prediction_id
        case Feedback():
            return event.feedback_id
        case DeadLetter():
            return f"{event.source_topic}:{event.source_position}"
        case Rollout():
            return f"{event.model}:{event.generation}"
        case ExperimentReport():
            return f"{event.replica}:{event.number}"

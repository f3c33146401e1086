"""The facts that the event log holds, and the content inside them.

Knows nothing about protobuf (see wire.py) or where events are kept (see ports.py).

Notation:
    d: embedding size, a: number of actions, k: number of dynamic actions
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class EncodedContent:
    """An encoded image or sound, as the client sent it."""

    kind: Literal["image", "audio"]
    data: bytes


@dataclass(frozen=True, slots=True)
class TextContent:
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class TensorContent:
    """A ready tensor without the batch axis, float32 or int64."""

    array: npt.NDArray[np.float32] | npt.NDArray[np.int64]


Content = EncodedContent | TextContent | TensorContent


class Role(StrEnum):
    """The part a version played when it answered."""

    LIVE = "live"
    CANDIDATE = "candidate"


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What the trunk made of one content.

    Attributes:
        trunk_digest: which trunk; features of different trunks must not be mixed.
        embedding: float32 ``[d]``.
        base_logits: float32 ``[a]``; of a decision between dynamic actions ``[k]``, in their order.
    """

    trunk_digest: str
    embedding: npt.NDArray[np.float32]
    base_logits: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DynamicAction:
    """Something that one request may be answered with: ``id`` is what the answer calls it, ``text`` what scores it."""

    id: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """One logged prediction.

    Attributes:
        time_s: UTC seconds since the epoch.
        propensity: probability with which ``action`` was picked, exploration included.
        allowed_actions: the actions it was picked from; empty means all.
        features: absent only for models whose trunk gives none.
        content: as sent; empty if the server is told not to keep it.
        traceparent: W3C trace context of the call it was made in; "" if that was not traced.
        dynamic_actions: what the request listed to pick from; empty means the model's actions. Where they are listed,
            ``action`` is the id of one of them, and ``features.base_logits`` is ``[k]``.
        user_group: a label that the user belongs to (see :mod:`plaudit.core.user_groups`); "" if none was given.
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
    """What a user did rather than said."""

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
    """Takes ``feedback_id`` back; empty: all of this user's feedback on the prediction."""

    feedback_id: str = ""


Signal = Thumb | Rating | Correction | Preference | Implicit | Retract


@dataclass(frozen=True, slots=True)
class Feedback:
    """One user signal about one decision.

    Attributes:
        feedback_id: the client's idempotency key and the whole key.
        time_s: UTC seconds since the epoch, when the server received it.
        traceparent: W3C trace context of the call it came with; "" if that was not traced. Not compared.
    """

    feedback_id: str
    prediction_id: str
    time_s: float
    user_id: str
    signal: Signal
    traceparent: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be used, kept with the reason."""

    source_topic: str
    source_position: str
    reason: str
    payload: bytes
    time_s: float


@dataclass(frozen=True, slots=True)
class RolloutChanged:
    """Which version serves a model, from ``time_s`` on. Fields as in :class:`plaudit.core.rollout.Rollout`."""

    model: str
    generation: int
    live: int | None
    previous: int | None
    gated: int | None
    candidate: int | None
    candidate_share: float
    pinned: bool
    time_s: float
    reason: str
    actor: str
    shadow: bool = False
    experiment: int = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """How one arm of an experiment has answered.

    Attributes:
        failed: requests without an answer: errors of ours and deadlines that passed, not requests that were wrong.
        latencies: answers by duration; see :mod:`plaudit_models.evaluation.guards` for the buckets.
    """

    failed: int = 0
    latencies: tuple[int, ...] = ()

    @property
    def answered(self) -> int:
        return sum(self.latencies)


@dataclass(frozen=True, slots=True)
class ShadowAnswer:
    """What a version in the shadow made of a request that was answered without it.

    Attributes:
        prediction_id: of the answer that was shown.
        action: the most probable one of the version in the shadow; "" if it failed.
        agrees: whether it is the most probable one of the version that answered, too.
        kl_nats: KL(shown ‖ shadow) of the two policies, in nats.
        duration_s: of decoding and evaluating it, alone.
        failure: why there is no answer; "" if there is one.
    """

    prediction_id: str
    action: str
    agrees: bool
    kl_nats: float
    duration_s: float
    failure: str = ""


@dataclass(frozen=True, slots=True)
class ExperimentReport:
    """What one inference service has seen of an experiment since its last report.

    Attributes:
        replica: which service; drawn anew whenever it begins to see an experiment.
        number: of this report, counted by the replica from 1.
        experiment: the generation of the rollout with which the experiment began.
        version: the one in an experiment.
        live, candidate: answers to users who were drawn for one or the other.
        shadows: what was computed in the shadow.
        dropped: what was not, because there was no time for it.
        problem: why the version does not run there; "" if it does.
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


Event = Decision | Feedback | DeadLetter | RolloutChanged | ExperimentReport


class Topic(StrEnum):
    DECISIONS = "plaudit.decisions"
    FEEDBACK = "plaudit.feedback"
    DEAD_LETTER = "plaudit.dead-letter"
    VERSIONS = "plaudit.versions"
    EXPERIMENTS = "plaudit.experiments"


def topic_of(event: Event) -> Topic:
    match event:
        case Decision():
            return Topic.DECISIONS
        case Feedback():
            return Topic.FEEDBACK
        case DeadLetter():
            return Topic.DEAD_LETTER
        case RolloutChanged():
            return Topic.VERSIONS
        case ExperimentReport():
            return Topic.EXPERIMENTS


def key_of(event: Event) -> str:
    """The partition key: a decision and its feedback share it."""
    match event:
        case Decision() | Feedback():
            return event.prediction_id
        case DeadLetter():
            return event.source_position
        case RolloutChanged() | ExperimentReport():
            return event.model


def event_id_of(event: Event) -> str:
    """What makes an event the same event: appending one of the same topic and id again is a duplicate."""
    match event:
        case Decision():
            return event.prediction_id
        case Feedback():
            return event.feedback_id
        case DeadLetter():
            return f"{event.source_topic}:{event.source_position}"
        case RolloutChanged():
            return f"{event.model}:{event.generation}"
        case ExperimentReport():
            return f"{event.replica}:{event.number}"

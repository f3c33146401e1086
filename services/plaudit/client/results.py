"""Results of calls as frozen values, read from messages. Knows no channel.

Times are UTC seconds since the epoch; None: there is no value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from plaudit.v1 import feedback_pb2, model_pb2, prediction_pb2

Role = Literal["live", "candidate"]
VersionKind = Literal["pretrained", "head", "finetuned", "imported", "unknown"]
ReceiptState = Literal["recorded", "joined", "discarded", "used", "live", "unknown"]

_ROLES: Final[Mapping[int, Role]] = {prediction_pb2.ROLE_LIVE: "live", prediction_pb2.ROLE_CANDIDATE: "candidate"}
_KINDS: Final[Mapping[int, VersionKind]] = {
    model_pb2.VERSION_KIND_PRETRAINED: "pretrained",
    model_pb2.VERSION_KIND_HEAD: "head",
    model_pb2.VERSION_KIND_FINETUNED: "finetuned",
    model_pb2.VERSION_KIND_IMPORTED: "imported",
}
_STATES: Final[Mapping[int, ReceiptState]] = {
    feedback_pb2.RECEIPT_STATE_RECORDED: "recorded",
    feedback_pb2.RECEIPT_STATE_JOINED: "joined",
    feedback_pb2.RECEIPT_STATE_DISCARDED: "discarded",
    feedback_pb2.RECEIPT_STATE_USED: "used",
    feedback_pb2.RECEIPT_STATE_LIVE: "live",
}


@dataclass(frozen=True, slots=True)
class Prediction:
    """Answer to a request.

    Attributes:
        prediction_id: signed id that feedback refers to.
        propensity: probability with which ``action`` was picked, exploration included.
        scores: probability by action, most probable first.
        contributions: of each modality to the probability of the picked action; empty without ``explain``.
        user_id: as given to ``predict``; also of feedback on this prediction, unless that names another user.
    """

    prediction_id: str
    action: str
    propensity: float
    scores: Mapping[str, float]
    version: int
    version_digest: str
    role: Role
    model: str
    contributions: Mapping[str, float]
    request_id: str
    user_id: str


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Acknowledgement that feedback is durable.

    Attributes:
        duplicate: True: this feedback_id was recorded before; nothing changed.
        error: on ``stream_feedback`` only: reason why this one was not recorded; "" if it was.
    """

    feedback_id: str
    duplicate: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """State of a piece of feedback on its way into a version.

    Attributes:
        reason: reason why it was discarded; "" if it was not.
        used_in_version: first version in the registry that is known to have learned from it; None if none is.
        live_since_s: time at which a version that learned from it first went live; None if it is not known.
    """

    feedback_id: str
    state: ReceiptState
    reason: str
    recorded_at_s: float | None
    used_in_version: int | None
    live_since_s: float | None


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable version of a model.

    Attributes:
        reason: reason why it was made, in one sentence.
        manifest: spec, digests, data range, metrics, gate evidence.
        experiment: report on its latest experiment; None if there was none, and in lists of versions.
    """

    version: int
    digest: str
    parent: int | None
    kind: VersionKind
    created_at_s: float | None
    reason: str
    manifest: Mapping[str, Any]
    experiment: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RolloutSnapshot:
    """Rollout of a model: which version serves, and why.

    Attributes:
        generation: grows by one with every change.
        previous: the version that ``rollback`` returns to.
        gated: the last version that passed the gate.
        candidate: the version in an experiment, serving ``candidate_share`` of the users.
        shadow: True: the candidate serves no user; its answers to that share of the requests are logged.
        experiment: generation with which the experiment began.
    """

    model: str
    generation: int
    live: int | None
    previous: int | None
    gated: int | None
    candidate: int | None
    candidate_share: float
    pinned: bool
    changed_at_s: float | None
    reason: str
    actor: str
    shadow: bool = False
    experiment: int | None = None


@dataclass(frozen=True, slots=True)
class Versions:
    """All versions of a model, oldest first, and its rollout."""

    versions: tuple[Version, ...]
    rollout: RolloutSnapshot


def prediction(message: prediction_pb2.PredictResponse, user_id: str) -> Prediction:
    names = ("prediction_id", "action", "propensity", "version", "version_digest", "model", "request_id")
    return Prediction(
        **{name: getattr(message, name) for name in names},
        scores={score.action: score.probability for score in message.scores},
        role=_ROLES.get(message.role, "live"),
        contributions=dict(message.contributions),
        user_id=user_id,
    )


def acknowledgement(message: feedback_pb2.SendFeedbackResponse) -> Acknowledgement:
    return Acknowledgement(
        feedback_id=message.feedback_id,
        duplicate=message.status == feedback_pb2.FEEDBACK_STATUS_DUPLICATE,
        error=message.error.message,
    )


def receipt(message: feedback_pb2.Receipt) -> Receipt:
    return Receipt(
        feedback_id=message.feedback_id,
        state=_STATES.get(message.state, "unknown"),
        reason=message.reason,
        recorded_at_s=_time_s(message, "recorded_at"),
        used_in_version=message.used_in_version or None,
        live_since_s=_time_s(message, "live_since"),
    )


def version(message: model_pb2.Version, experiment_json: str = "") -> Version:
    return Version(
        version=message.version,
        digest=message.digest,
        parent=message.parent or None,
        kind=_KINDS.get(message.kind, "unknown"),
        created_at_s=_time_s(message, "created_at"),
        reason=message.reason,
        manifest=json.loads(message.manifest_json or "{}"),
        experiment=json.loads(experiment_json) if experiment_json else None,
    )


def rollout(message: model_pb2.Rollout) -> RolloutSnapshot:
    names = ("model", "generation", "candidate_share", "pinned", "reason", "actor", "shadow")
    values = {name: getattr(message, name) for name in names}
    for name in ("live", "previous", "gated", "candidate", "experiment"):
        values[name] = getattr(message, name) or None  # 0 on the wire
    return RolloutSnapshot(**values, changed_at_s=_time_s(message, "changed_at"))


def versions(message: model_pb2.ListVersionsResponse) -> Versions:
    return Versions(tuple(version(each) for each in message.versions), rollout(message.rollout))


def _time_s(message: Message, field: str) -> float | None:
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.seconds + stamp.nanos / 1e9

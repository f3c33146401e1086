"""Protobuf messages ↔ core dataclasses, the only place besides servicers and client that imports ``plaudit.v1``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from operator import attrgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from plaudit.core.errors import InvalidInput
from plaudit.core.events import (
    Answers,
    Content,
    Correction,
    DeadLetter,
    Decision,
    DynamicAction,
    EncodedContent,
    Event,
    ExperimentReport,
    Features,
    Feedback,
    Implicit,
    ImplicitKind,
    Preference,
    Rating,
    Retract,
    Role,
    ShadowAnswer,
    Signal,
    TensorContent,
    TextContent,
    Thumb,
    Topic,
)
from plaudit.core.limits import (
    MAX_EVENT_TIME_S,
    MAX_MODALITIES,
    MAX_SHOWN_CHARACTERS,
    MAX_TENSOR_RANK,
    MIN_EVENT_TIME_S,
)
from plaudit.core.message_bounds import check_message
from plaudit.core.rollout import Rollout
from plaudit.core.text.identifiers import check_given_id, check_id
from plaudit.v1 import content_pb2, events_pb2, feedback_pb2, prediction_pb2

ROLE_TO_WIRE: Final = {Role.LIVE: prediction_pb2.ROLE_LIVE, Role.CANDIDATE: prediction_pb2.ROLE_CANDIDATE}
_ROLE_FROM_WIRE: Final = {wire: role for role, wire in ROLE_TO_WIRE.items()}
_IMPLICIT_TO_WIRE: Final = {
    ImplicitKind.REPHRASED: feedback_pb2.IMPLICIT_KIND_REPHRASED,
    ImplicitKind.INTERRUPTED: feedback_pb2.IMPLICIT_KIND_INTERRUPTED,
    ImplicitKind.ACCEPTED: feedback_pb2.IMPLICIT_KIND_ACCEPTED,
}
_IMPLICIT_FROM_WIRE: Final = {wire: kind for kind, wire in _IMPLICIT_TO_WIRE.items()}
_DTYPES: Final[dict[content_pb2.DataType, np.dtype[Any]]] = {
    content_pb2.DATA_TYPE_FP32: np.dtype("<f4"),
    content_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    content_pb2.DATA_TYPE_FP16: np.dtype("<f2"),
    content_pb2.DATA_TYPE_FP64: np.dtype("<f8"),
    content_pb2.DATA_TYPE_INT8: np.dtype("i1"),
    content_pb2.DATA_TYPE_INT16: np.dtype("<i2"),
    content_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    content_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
    content_pb2.DATA_TYPE_UINT16: np.dtype("<u2"),
    content_pb2.DATA_TYPE_UINT32: np.dtype("<u4"),
    content_pb2.DATA_TYPE_UINT64: np.dtype("<u8"),
    content_pb2.DATA_TYPE_BOOL: np.dtype("?"),
}

_DTYPE_NAMES: Final = ", ".join(dtype.name for dtype in _DTYPES.values())


# --- content ---------------------------------------------------------------------------------------------------------


def content_from_wire(message: content_pb2.Content, field: str) -> Content:
    """Content of one modality. Raises InvalidInput naming ``field``."""
    match message.WhichOneof("kind"):
        case "image":
            return EncodedContent("image", message.image)
        case "audio":
            return EncodedContent("audio", message.audio)
        case "text":
            return TextContent(message.text)
        case "tensor":
            return TensorContent(_tensor_from_wire(message.tensor, field))
        case _:
            raise InvalidInput(field, "is empty; set one of image, audio, text, tensor")


def content_to_wire(content: Content) -> content_pb2.Content:
    match content:
        case EncodedContent("image", data):
            return content_pb2.Content(image=data)
        case EncodedContent(_, data):
            return content_pb2.Content(audio=data)
        case TextContent(text):
            return content_pb2.Content(text=text)
        case TensorContent(array):
            return content_pb2.Content(tensor=tensor_to_wire(array))


def tensor_to_wire(array: npt.NDArray[Any]) -> content_pb2.Tensor:
    """Tensor message of an array. Raises ValueError if it holds neither numbers nor truth values."""
    for data_type, dtype in _DTYPES.items():
        if array.dtype == dtype:
            data = np.ascontiguousarray(array, dtype=dtype).tobytes()
            return content_pb2.Tensor(data_type=data_type, shape=array.shape, data=data)
    raise ValueError(f"dtype {array.dtype} is none of a tensor message; there are {_DTYPE_NAMES}")


def _tensor_from_wire(message: content_pb2.Tensor, field: str) -> npt.NDArray[Any]:
    dtype = _DTYPES.get(message.data_type)
    if dtype is None:
        known = ", ".join(content_pb2.DataType.Name(each) for each in _DTYPES)
        raise InvalidInput(f"{field}.data_type", f"{message.data_type} is none of {known}")
    rank = len(message.shape)
    if rank > MAX_TENSOR_RANK:  # before the lengths are multiplied: a product of many is quadratic in their number
        raise InvalidInput(f"{field}.shape", f"has {rank} axes; at most {MAX_TENSOR_RANK} are taken")
    shape = tuple(message.shape)
    if any(length < 1 for length in shape):
        raise InvalidInput(
            f"{field}.shape", f"{list(shape)} has a length below 1; leave the modality out to say it is missing"
        )
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(message.data):
        raise InvalidInput(
            f"{field}.data", f"has {len(message.data)} bytes; shape {list(shape)} of {dtype.name} needs {expected}"
        )
    return np.frombuffer(message.data, dtype=dtype).reshape(shape)


# --- feedback --------------------------------------------------------------------------------------------------------

FeedbackMessage = feedback_pb2.SendFeedbackRequest | events_pb2.FeedbackEvent
"""Messages with the same ``signal`` oneof."""


def signal_from_wire(message: FeedbackMessage) -> Signal:
    """Signal of a feedback message. Raises InvalidInput naming the field."""
    match message.WhichOneof("signal"):
        case "thumb":
            if message.thumb not in (feedback_pb2.THUMB_UP, feedback_pb2.THUMB_DOWN):
                raise InvalidInput("thumb", f"{message.thumb} is neither THUMB_UP nor THUMB_DOWN")
            return Thumb(up=message.thumb == feedback_pb2.THUMB_UP)
        case "rating":
            if not 0.0 <= message.rating <= 1.0:
                raise InvalidInput("rating", f"{message.rating} is not in [0, 1]")
            return Rating(message.rating)
        case "correction":
            return Correction(message.correction)
        case "preference":
            return Preference(message.preference.preferred, message.preference.rejected)
        case "implicit":
            kind = _IMPLICIT_FROM_WIRE.get(message.implicit.kind)
            if kind is None:
                raise InvalidInput("implicit.kind", f"{message.implicit.kind} is not a known kind")
            return Implicit(kind)
        case "retract":
            return Retract(check_id("retract.feedback_id", message.retract.feedback_id))
        case _:
            raise InvalidInput(
                "signal", "is missing; set one of thumb, rating, correction, preference, implicit, retract"
            )


def set_signal(message: FeedbackMessage, signal: Signal) -> None:
    """Fill the ``signal`` oneof of ``message``."""
    match signal:
        case Thumb(up):
            message.thumb = feedback_pb2.THUMB_UP if up else feedback_pb2.THUMB_DOWN
        case Rating(value):
            message.rating = value
        case Correction(action):
            message.correction = action
        case Preference(preferred, rejected):
            message.preference.CopyFrom(feedback_pb2.Preference(preferred=preferred, rejected=rejected))
        case Implicit(kind):
            message.implicit.CopyFrom(feedback_pb2.Implicit(kind=_IMPLICIT_TO_WIRE[kind]))
        case Retract(feedback_id):
            message.retract.CopyFrom(feedback_pb2.Retract(feedback_id=feedback_id))


# --- events ----------------------------------------------------------------------------------------------------------

_MESSAGE_TYPES: Final = {
    Topic.DECISIONS: events_pb2.DecisionEvent.DESCRIPTOR,
    Topic.FEEDBACK: events_pb2.FeedbackEvent.DESCRIPTOR,
    Topic.DEAD_LETTER: events_pb2.DeadLetterEvent.DESCRIPTOR,
    Topic.VERSIONS: events_pb2.RolloutEvent.DESCRIPTOR,
    Topic.EXPERIMENTS: events_pb2.ExperimentEvent.DESCRIPTOR,
}


def event_type(topic: Topic) -> str:
    """Full name of the protobuf message in the topic's payloads."""
    return _MESSAGE_TYPES[topic].full_name


# Fields that an event and its message both have, by the same name. Those of decisions and feedback are written out
# below: they are most of all events, and looking their fields up by name would take half of the time that one needs.
_DEAD_LETTER: Final = ("source_topic", "source_position", "reason", "payload")
_ROLLOUT: Final = ("model", "generation", "candidate_share", "pinned", "reason", "actor", "shadow", "experiment")
_ROLLOUT_VERSIONS: Final = ("live", "previous", "gated", "candidate")
"""None in the rollout is no value, or 0, in the message."""
_EXPERIMENT: Final = ("replica", "number", "model", "experiment", "version", "dropped", "problem")
_ANSWERS: Final = ("failed", "latencies")
_SHADOW_ANSWER: Final = ("prediction_id", "action", "agrees", "kl_nats", "duration_s", "failure")


def _values(source: object, names: tuple[str, ...]) -> dict[str, Any]:
    return dict(zip(names, _getter(names)(source), strict=True))


@cache
def _getter(names: tuple[str, ...]) -> Callable[[object], tuple[Any, ...]]:
    return attrgetter(*names)


_MAX_PROBLEM_CHARACTERS: Final = 500


class UnreadableEvent(Exception):
    """A payload is not an event of its topic; the message says why."""


def encode_event(event: Event) -> bytes:
    """Durable payload of an event."""
    message: Message
    match event:
        case Decision():
            message = _decision_to_wire(event)
        case Feedback():
            message = events_pb2.FeedbackEvent(
                feedback_id=event.feedback_id,
                prediction_id=event.prediction_id,
                user_id=event.user_id,
                traceparent=event.traceparent,
                time_us=_to_us(event.time_s),
            )
            set_signal(message, event.signal)
        case DeadLetter():
            message = events_pb2.DeadLetterEvent(**_values(event, _DEAD_LETTER), time_us=_to_us(event.time_s))
        case Rollout():
            values = _values(event, (*_ROLLOUT, *_ROLLOUT_VERSIONS))
            message = events_pb2.RolloutEvent(**values, time_us=_to_us(event.changed_at_s))
        case ExperimentReport():
            message = events_pb2.ExperimentEvent(
                **_values(event, _EXPERIMENT),
                time_us=_to_us(event.time_s),
                live=events_pb2.Answers(**_values(event.live, _ANSWERS)),
                candidate=events_pb2.Answers(**_values(event.candidate, _ANSWERS)),
                shadows=[events_pb2.ShadowAnswer(**_values(each, _SHADOW_ANSWER)) for each in event.shadows],
            )
    return message.SerializeToString()


def encode_without_features(decision: Decision) -> bytes:
    """Payload of a decision whose features are kept elsewhere."""
    return _decision_to_wire(decision, features=False).SerializeToString()


def decode_event(topic: Topic, payload: bytes) -> Event:
    """Event of a payload, the inverse of :func:`encode_event`. Fields of newer schemas are ignored.

    Raises:
        UnreadableEvent: the payload is damaged or not of this topic.
    """
    try:
        check_message(payload, _MESSAGE_TYPES[topic], ids=False)
        match topic:
            case Topic.DECISIONS:
                return _decision_from_wire(events_pb2.DecisionEvent.FromString(payload))
            case Topic.FEEDBACK:
                return _feedback_from_wire(events_pb2.FeedbackEvent.FromString(payload))
            case Topic.DEAD_LETTER:
                letter = events_pb2.DeadLetterEvent.FromString(payload)
                return DeadLetter(**_values(letter, _DEAD_LETTER), time_s=_time_s(letter.time_us, 0.0))
            case Topic.VERSIONS:
                rollout = events_pb2.RolloutEvent.FromString(payload)
                numbers: dict[str, Any] = {name: getattr(rollout, name) or None for name in _ROLLOUT_VERSIONS}
                return Rollout(**_values(rollout, _ROLLOUT), **numbers, changed_at_s=_time_s(rollout.time_us, 0.0))
            case Topic.EXPERIMENTS:
                return _experiment_from_wire(events_pb2.ExperimentEvent.FromString(payload))
    except Exception as error:  # whatever a record does to its decoder, the next record is read
        known = isinstance(error, DecodeError | InvalidInput)
        problem = str(error) if known else f"{type(error).__name__}: {error}"
        raise UnreadableEvent(f"not a readable record of {topic}: {problem[:_MAX_PROBLEM_CHARACTERS]}") from error


def _decision_to_wire(decision: Decision, *, features: bool = True) -> events_pb2.DecisionEvent:
    message = events_pb2.DecisionEvent(
        prediction_id=decision.prediction_id,
        model=decision.model,
        user_id=decision.user_id,
        version=decision.version,
        version_digest=decision.version_digest,
        action=decision.action,
        propensity=decision.propensity,
        greedy=decision.greedy,
        request_id=decision.request_id,
        traceparent=decision.traceparent,
        user_group=decision.user_group,
        time_us=_to_us(decision.time_s),
        role=ROLE_TO_WIRE[decision.role],
        allowed_actions=decision.allowed_actions,
        content=contents_to_wire(decision.content),
        dynamic_actions=dynamic_actions_to_wire(decision.dynamic_actions),
    )
    if features and decision.features is not None:
        message.features.trunk_digest = decision.features.trunk_digest
        message.features.embedding = decision.features.embedding.astype("<f4").tobytes()
        message.features.base_logits = decision.features.base_logits.astype("<f4").tobytes()
    return message


def _decision_from_wire(message: events_pb2.DecisionEvent) -> Decision:
    prediction_id, action, propensity = message.prediction_id, message.action, message.propensity
    if not prediction_id:
        raise InvalidInput("prediction_id", "is empty")
    if not 0.0 < propensity <= 1.0:
        raise InvalidInput("propensity", f"{propensity} is not in (0, 1]")
    features = None
    if message.HasField("features"):
        sent = message.features
        features = Features(
            trunk_digest=sent.trunk_digest,
            embedding=_floats(sent.embedding, "features.embedding"),
            base_logits=_floats(sent.base_logits, "features.base_logits"),
        )
    dynamic_actions = dynamic_actions_from_wire(message.dynamic_actions)
    if dynamic_actions:
        _check_dynamic_actions(dynamic_actions, action, features)
    return Decision(
        prediction_id=prediction_id,
        model=check_id("model", message.model),
        time_s=_time_s(message.time_us),
        user_id=check_id("user_id", message.user_id),
        version=message.version,
        version_digest=message.version_digest,
        role=_ROLE_FROM_WIRE.get(message.role, Role.LIVE),
        action=action,
        propensity=propensity,
        allowed_actions=tuple(message.allowed_actions),
        greedy=message.greedy,
        request_id=check_id("request_id", message.request_id),
        features=features,
        content=contents_from_wire(message.content),
        traceparent=message.traceparent,
        dynamic_actions=dynamic_actions,
        user_group=check_id("user_group", message.user_group),
    )


def _check_dynamic_actions(dynamic_actions: tuple[DynamicAction, ...], action: str, features: Features | None) -> None:
    ids = {each.id for each in dynamic_actions}
    if len(ids) != len(dynamic_actions):
        raise InvalidInput("dynamic_actions", "lists an id twice")
    if action not in ids:
        raise InvalidInput("action", f"{action[:80]!r} is not one of the {len(ids)} dynamic actions")
    if features is not None and len(features.base_logits) != len(dynamic_actions):
        raise InvalidInput(
            "features.base_logits", f"has {len(features.base_logits)} values for {len(dynamic_actions)} dynamic actions"
        )


def _feedback_from_wire(message: events_pb2.FeedbackEvent) -> Feedback:
    feedback_id = check_given_id("feedback_id", message.feedback_id)
    prediction_id = message.prediction_id
    if not prediction_id:
        raise InvalidInput("prediction_id", "is empty")
    return Feedback(
        feedback_id=feedback_id,
        prediction_id=prediction_id,
        time_s=_time_s(message.time_us),
        user_id=check_id("user_id", message.user_id),
        signal=signal_from_wire(message),
        traceparent=message.traceparent,
    )


def feedback_named_in(payload: bytes) -> tuple[str, float] | None:
    """Id and time of a piece of feedback that is not readable as one; None where not even they are."""
    try:
        message = events_pb2.FeedbackEvent.FromString(payload)
        return check_given_id("feedback_id", message.feedback_id), _time_s(message.time_us)
    except (DecodeError, InvalidInput):
        return None


def _experiment_from_wire(message: events_pb2.ExperimentEvent) -> ExperimentReport:
    if not message.replica:
        raise InvalidInput("replica", "is empty")
    for shadow in message.shadows:
        if not (math.isfinite(shadow.kl_nats) and math.isfinite(shadow.duration_s)):
            raise InvalidInput("shadows", f"kl_nats {shadow.kl_nats} or duration_s {shadow.duration_s} is not finite")
    check_id("replica", message.replica)
    check_id("model", message.model)
    return ExperimentReport(
        **_values(message, _EXPERIMENT),
        time_s=_time_s(message.time_us, 0.0),
        live=_answers_from_wire(message.live, "live"),
        candidate=_answers_from_wire(message.candidate, "candidate"),
        shadows=tuple(ShadowAnswer(**_values(each, _SHADOW_ANSWER)) for each in message.shadows),
    )


def _answers_from_wire(message: events_pb2.Answers, field: str) -> Answers:
    if message.failed < 0 or any(count < 0 for count in message.latencies):
        raise InvalidInput(field, "holds a negative count")
    return Answers(message.failed, tuple(message.latencies))


def dynamic_actions_to_wire(dynamic_actions: Iterable[DynamicAction]) -> list[prediction_pb2.DynamicAction]:
    return [prediction_pb2.DynamicAction(id=each.id, text=each.text) for each in dynamic_actions]


def dynamic_actions_from_wire(messages: Iterable[prediction_pb2.DynamicAction]) -> tuple[DynamicAction, ...]:
    return tuple(DynamicAction(message.id, message.text) for message in messages)


def contents_to_wire(content: Mapping[str, Content]) -> dict[str, content_pb2.Content]:
    return {name: content_to_wire(part) for name, part in content.items()}


def contents_from_wire(content: Mapping[str, content_pb2.Content]) -> dict[str, Content]:
    """Content by modality name. Raises InvalidInput naming the modality."""
    if len(content) > MAX_MODALITIES:
        raise InvalidInput("content", f"has {len(content)} modalities; at most {MAX_MODALITIES} are taken")
    return {
        name: content_from_wire(part, f'content["{name[:MAX_SHOWN_CHARACTERS]}"]') for name, part in content.items()
    }


def _floats(data: bytes, field: str) -> npt.NDArray[np.float32]:
    if len(data) % 4:
        raise InvalidInput(field, f"has {len(data)} bytes, not a whole number of float32")
    return np.frombuffer(data, dtype="<f4")


def _time_s(time_us: int, earliest_s: float = MIN_EVENT_TIME_S) -> float:
    """Time of an event, UTC seconds: a time that no calendar has would be the latest for ever."""
    time_s = time_us / 1e6
    if not earliest_s <= time_s <= MAX_EVENT_TIME_S:
        raise InvalidInput(
            "time_us", f"{time_us} µs is not between {earliest_s:.0f} s and {MAX_EVENT_TIME_S:.0f} s (2100)"
        )
    return time_s


def _to_us(time_s: float) -> int:
    return round(time_s * 1e6)

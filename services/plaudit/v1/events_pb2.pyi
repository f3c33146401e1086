from plaudit.v1 import content_pb2 as _content_pb2
from plaudit.v1 import feedback_pb2 as _feedback_pb2
from plaudit.v1 import prediction_pb2 as _prediction_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DecisionEvent(_message.Message):
    __slots__ = ("prediction_id", "model", "time_us", "user_id", "version", "version_digest", "role", "action", "propensity", "allowed_actions", "greedy", "request_id", "features", "content", "traceparent", "dynamic_actions", "user_group")
    class ContentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _content_pb2.Content
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_content_pb2.Content, _Mapping]] = ...) -> None: ...
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_ACTIONS_FIELD_NUMBER: _ClassVar[int]
    GREEDY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    DYNAMIC_ACTIONS_FIELD_NUMBER: _ClassVar[int]
    USER_GROUP_FIELD_NUMBER: _ClassVar[int]
    prediction_id: str
    model: str
    time_us: int
    user_id: str
    version: int
    version_digest: str
    role: _prediction_pb2.Role
    action: str
    propensity: float
    allowed_actions: _containers.RepeatedScalarFieldContainer[str]
    greedy: bool
    request_id: str
    features: Features
    content: _containers.MessageMap[str, _content_pb2.Content]
    traceparent: str
    dynamic_actions: _containers.RepeatedCompositeFieldContainer[_prediction_pb2.DynamicAction]
    user_group: str
    def __init__(self, prediction_id: _Optional[str] = ..., model: _Optional[str] = ..., time_us: _Optional[int] = ..., user_id: _Optional[str] = ..., version: _Optional[int] = ..., version_digest: _Optional[str] = ..., role: _Optional[_Union[_prediction_pb2.Role, str]] = ..., action: _Optional[str] = ..., propensity: _Optional[float] = ..., allowed_actions: _Optional[_Iterable[str]] = ..., greedy: bool = ..., request_id: _Optional[str] = ..., features: _Optional[_Union[Features, _Mapping]] = ..., content: _Optional[_Mapping[str, _content_pb2.Content]] = ..., traceparent: _Optional[str] = ..., dynamic_actions: _Optional[_Iterable[_Union[_prediction_pb2.DynamicAction, _Mapping]]] = ..., user_group: _Optional[str] = ...) -> None: ...

class Features(_message.Message):
    __slots__ = ("trunk_digest", "embedding", "base_logits")
    TRUNK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    BASE_LOGITS_FIELD_NUMBER: _ClassVar[int]
    trunk_digest: str
    embedding: bytes
    base_logits: bytes
    def __init__(self, trunk_digest: _Optional[str] = ..., embedding: _Optional[bytes] = ..., base_logits: _Optional[bytes] = ...) -> None: ...

class FeedbackEvent(_message.Message):
    __slots__ = ("feedback_id", "prediction_id", "time_us", "user_id", "thumb", "rating", "correction", "preference", "implicit", "retract", "traceparent")
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    THUMB_FIELD_NUMBER: _ClassVar[int]
    RATING_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    PREFERENCE_FIELD_NUMBER: _ClassVar[int]
    IMPLICIT_FIELD_NUMBER: _ClassVar[int]
    RETRACT_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    prediction_id: str
    time_us: int
    user_id: str
    thumb: _feedback_pb2.Thumb
    rating: float
    correction: str
    preference: _feedback_pb2.Preference
    implicit: _feedback_pb2.Implicit
    retract: _feedback_pb2.Retract
    traceparent: str
    def __init__(self, feedback_id: _Optional[str] = ..., prediction_id: _Optional[str] = ..., time_us: _Optional[int] = ..., user_id: _Optional[str] = ..., thumb: _Optional[_Union[_feedback_pb2.Thumb, str]] = ..., rating: _Optional[float] = ..., correction: _Optional[str] = ..., preference: _Optional[_Union[_feedback_pb2.Preference, _Mapping]] = ..., implicit: _Optional[_Union[_feedback_pb2.Implicit, _Mapping]] = ..., retract: _Optional[_Union[_feedback_pb2.Retract, _Mapping]] = ..., traceparent: _Optional[str] = ...) -> None: ...

class DeadLetterEvent(_message.Message):
    __slots__ = ("source_topic", "source_position", "reason", "payload", "time_us")
    SOURCE_TOPIC_FIELD_NUMBER: _ClassVar[int]
    SOURCE_POSITION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    source_topic: str
    source_position: str
    reason: str
    payload: bytes
    time_us: int
    def __init__(self, source_topic: _Optional[str] = ..., source_position: _Optional[str] = ..., reason: _Optional[str] = ..., payload: _Optional[bytes] = ..., time_us: _Optional[int] = ...) -> None: ...

class RolloutEvent(_message.Message):
    __slots__ = ("model", "generation", "live", "previous", "gated", "candidate", "candidate_share", "pinned", "time_us", "reason", "actor", "shadow", "experiment")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    GATED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_SHARE_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    model: str
    generation: int
    live: int
    previous: int
    gated: int
    candidate: int
    candidate_share: float
    pinned: bool
    time_us: int
    reason: str
    actor: str
    shadow: bool
    experiment: int
    def __init__(self, model: _Optional[str] = ..., generation: _Optional[int] = ..., live: _Optional[int] = ..., previous: _Optional[int] = ..., gated: _Optional[int] = ..., candidate: _Optional[int] = ..., candidate_share: _Optional[float] = ..., pinned: bool = ..., time_us: _Optional[int] = ..., reason: _Optional[str] = ..., actor: _Optional[str] = ..., shadow: bool = ..., experiment: _Optional[int] = ...) -> None: ...

class ExperimentEvent(_message.Message):
    __slots__ = ("replica", "number", "model", "experiment", "version", "time_us", "live", "candidate", "shadows", "dropped", "problem")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    SHADOWS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    replica: str
    number: int
    model: str
    experiment: int
    version: int
    time_us: int
    live: Answers
    candidate: Answers
    shadows: _containers.RepeatedCompositeFieldContainer[ShadowAnswer]
    dropped: int
    problem: str
    def __init__(self, replica: _Optional[str] = ..., number: _Optional[int] = ..., model: _Optional[str] = ..., experiment: _Optional[int] = ..., version: _Optional[int] = ..., time_us: _Optional[int] = ..., live: _Optional[_Union[Answers, _Mapping]] = ..., candidate: _Optional[_Union[Answers, _Mapping]] = ..., shadows: _Optional[_Iterable[_Union[ShadowAnswer, _Mapping]]] = ..., dropped: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...

class Answers(_message.Message):
    __slots__ = ("failed", "latencies")
    FAILED_FIELD_NUMBER: _ClassVar[int]
    LATENCIES_FIELD_NUMBER: _ClassVar[int]
    failed: int
    latencies: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, failed: _Optional[int] = ..., latencies: _Optional[_Iterable[int]] = ...) -> None: ...

class ShadowAnswer(_message.Message):
    __slots__ = ("prediction_id", "action", "agrees", "kl_nats", "duration_s", "failure")
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    AGREES_FIELD_NUMBER: _ClassVar[int]
    KL_NATS_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    prediction_id: str
    action: str
    agrees: bool
    kl_nats: float
    duration_s: float
    failure: str
    def __init__(self, prediction_id: _Optional[str] = ..., action: _Optional[str] = ..., agrees: bool = ..., kl_nats: _Optional[float] = ..., duration_s: _Optional[float] = ..., failure: _Optional[str] = ...) -> None: ...

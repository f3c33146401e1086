from plaudit.v1 import access_pb2 as _access_pb2
from plaudit.v1 import content_pb2 as _content_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_LIVE: _ClassVar[Role]
    ROLE_CANDIDATE: _ClassVar[Role]
ROLE_UNSPECIFIED: Role
ROLE_LIVE: Role
ROLE_CANDIDATE: Role

class PredictRequest(_message.Message):
    __slots__ = ("model", "content", "user_id", "allowed_actions", "greedy", "top_k", "explain", "request_id", "dynamic_actions", "user_group")
    class ContentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _content_pb2.Content
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_content_pb2.Content, _Mapping]] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_ACTIONS_FIELD_NUMBER: _ClassVar[int]
    GREEDY_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DYNAMIC_ACTIONS_FIELD_NUMBER: _ClassVar[int]
    USER_GROUP_FIELD_NUMBER: _ClassVar[int]
    model: str
    content: _containers.MessageMap[str, _content_pb2.Content]
    user_id: str
    allowed_actions: _containers.RepeatedScalarFieldContainer[str]
    greedy: bool
    top_k: int
    explain: bool
    request_id: str
    dynamic_actions: _containers.RepeatedCompositeFieldContainer[DynamicAction]
    user_group: str
    def __init__(self, model: _Optional[str] = ..., content: _Optional[_Mapping[str, _content_pb2.Content]] = ..., user_id: _Optional[str] = ..., allowed_actions: _Optional[_Iterable[str]] = ..., greedy: bool = ..., top_k: _Optional[int] = ..., explain: bool = ..., request_id: _Optional[str] = ..., dynamic_actions: _Optional[_Iterable[_Union[DynamicAction, _Mapping]]] = ..., user_group: _Optional[str] = ...) -> None: ...

class DynamicAction(_message.Message):
    __slots__ = ("id", "text")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    id: str
    text: str
    def __init__(self, id: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("prediction_id", "action", "propensity", "scores", "version", "version_digest", "role", "contributions", "request_id", "model")
    class ContributionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    prediction_id: str
    action: str
    propensity: float
    scores: _containers.RepeatedCompositeFieldContainer[Score]
    version: int
    version_digest: str
    role: Role
    contributions: _containers.ScalarMap[str, float]
    request_id: str
    model: str
    def __init__(self, prediction_id: _Optional[str] = ..., action: _Optional[str] = ..., propensity: _Optional[float] = ..., scores: _Optional[_Iterable[_Union[Score, _Mapping]]] = ..., version: _Optional[int] = ..., version_digest: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., contributions: _Optional[_Mapping[str, float]] = ..., request_id: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("action", "probability")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    action: str
    probability: float
    def __init__(self, action: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class PredictStreamRequest(_message.Message):
    __slots__ = ("start", "chunk", "end", "cancel")
    START_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    start: PredictStart
    chunk: ContentChunk
    end: PredictEnd
    cancel: PredictCancel
    def __init__(self, start: _Optional[_Union[PredictStart, _Mapping]] = ..., chunk: _Optional[_Union[ContentChunk, _Mapping]] = ..., end: _Optional[_Union[PredictEnd, _Mapping]] = ..., cancel: _Optional[_Union[PredictCancel, _Mapping]] = ...) -> None: ...

class PredictStart(_message.Message):
    __slots__ = ("request", "streamed", "interim_interval_ms")
    class StreamedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: StreamedContent
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[StreamedContent, _Mapping]] = ...) -> None: ...
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STREAMED_FIELD_NUMBER: _ClassVar[int]
    INTERIM_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    request: PredictRequest
    streamed: _containers.MessageMap[str, StreamedContent]
    interim_interval_ms: int
    def __init__(self, request: _Optional[_Union[PredictRequest, _Mapping]] = ..., streamed: _Optional[_Mapping[str, StreamedContent]] = ..., interim_interval_ms: _Optional[int] = ...) -> None: ...

class StreamedContent(_message.Message):
    __slots__ = ("pcm16_sample_rate_hz", "encoded_audio", "encoded_image")
    PCM16_SAMPLE_RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    ENCODED_AUDIO_FIELD_NUMBER: _ClassVar[int]
    ENCODED_IMAGE_FIELD_NUMBER: _ClassVar[int]
    pcm16_sample_rate_hz: int
    encoded_audio: bool
    encoded_image: bool
    def __init__(self, pcm16_sample_rate_hz: _Optional[int] = ..., encoded_audio: bool = ..., encoded_image: bool = ...) -> None: ...

class ContentChunk(_message.Message):
    __slots__ = ("modality", "data")
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    modality: str
    data: bytes
    def __init__(self, modality: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class PredictEnd(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PredictCancel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PredictStreamResponse(_message.Message):
    __slots__ = ("final", "interim", "cancelled", "request_id")
    FINAL_FIELD_NUMBER: _ClassVar[int]
    INTERIM_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    final: PredictResponse
    interim: PredictResponse
    cancelled: bool
    request_id: str
    def __init__(self, final: _Optional[_Union[PredictResponse, _Mapping]] = ..., interim: _Optional[_Union[PredictResponse, _Mapping]] = ..., cancelled: bool = ..., request_id: _Optional[str] = ...) -> None: ...

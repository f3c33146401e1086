import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from plaudit.v1 import access_pb2 as _access_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Thumb(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    THUMB_UNSPECIFIED: _ClassVar[Thumb]
    THUMB_UP: _ClassVar[Thumb]
    THUMB_DOWN: _ClassVar[Thumb]

class ImplicitKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMPLICIT_KIND_UNSPECIFIED: _ClassVar[ImplicitKind]
    IMPLICIT_KIND_REPHRASED: _ClassVar[ImplicitKind]
    IMPLICIT_KIND_INTERRUPTED: _ClassVar[ImplicitKind]
    IMPLICIT_KIND_ACCEPTED: _ClassVar[ImplicitKind]

class FeedbackStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEEDBACK_STATUS_UNSPECIFIED: _ClassVar[FeedbackStatus]
    FEEDBACK_STATUS_ACCEPTED: _ClassVar[FeedbackStatus]
    FEEDBACK_STATUS_DUPLICATE: _ClassVar[FeedbackStatus]

class ReceiptState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECEIPT_STATE_UNSPECIFIED: _ClassVar[ReceiptState]
    RECEIPT_STATE_RECORDED: _ClassVar[ReceiptState]
    RECEIPT_STATE_JOINED: _ClassVar[ReceiptState]
    RECEIPT_STATE_DISCARDED: _ClassVar[ReceiptState]
    RECEIPT_STATE_USED: _ClassVar[ReceiptState]
    RECEIPT_STATE_LIVE: _ClassVar[ReceiptState]
THUMB_UNSPECIFIED: Thumb
THUMB_UP: Thumb
THUMB_DOWN: Thumb
IMPLICIT_KIND_UNSPECIFIED: ImplicitKind
IMPLICIT_KIND_REPHRASED: ImplicitKind
IMPLICIT_KIND_INTERRUPTED: ImplicitKind
IMPLICIT_KIND_ACCEPTED: ImplicitKind
FEEDBACK_STATUS_UNSPECIFIED: FeedbackStatus
FEEDBACK_STATUS_ACCEPTED: FeedbackStatus
FEEDBACK_STATUS_DUPLICATE: FeedbackStatus
RECEIPT_STATE_UNSPECIFIED: ReceiptState
RECEIPT_STATE_RECORDED: ReceiptState
RECEIPT_STATE_JOINED: ReceiptState
RECEIPT_STATE_DISCARDED: ReceiptState
RECEIPT_STATE_USED: ReceiptState
RECEIPT_STATE_LIVE: ReceiptState

class SendFeedbackRequest(_message.Message):
    __slots__ = ("feedback_id", "prediction_id", "user_id", "thumb", "rating", "correction", "preference", "implicit", "retract")
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    THUMB_FIELD_NUMBER: _ClassVar[int]
    RATING_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    PREFERENCE_FIELD_NUMBER: _ClassVar[int]
    IMPLICIT_FIELD_NUMBER: _ClassVar[int]
    RETRACT_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    prediction_id: str
    user_id: str
    thumb: Thumb
    rating: float
    correction: str
    preference: Preference
    implicit: Implicit
    retract: Retract
    def __init__(self, feedback_id: _Optional[str] = ..., prediction_id: _Optional[str] = ..., user_id: _Optional[str] = ..., thumb: _Optional[_Union[Thumb, str]] = ..., rating: _Optional[float] = ..., correction: _Optional[str] = ..., preference: _Optional[_Union[Preference, _Mapping]] = ..., implicit: _Optional[_Union[Implicit, _Mapping]] = ..., retract: _Optional[_Union[Retract, _Mapping]] = ...) -> None: ...

class Preference(_message.Message):
    __slots__ = ("preferred", "rejected")
    PREFERRED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    preferred: str
    rejected: str
    def __init__(self, preferred: _Optional[str] = ..., rejected: _Optional[str] = ...) -> None: ...

class Implicit(_message.Message):
    __slots__ = ("kind",)
    KIND_FIELD_NUMBER: _ClassVar[int]
    kind: ImplicitKind
    def __init__(self, kind: _Optional[_Union[ImplicitKind, str]] = ...) -> None: ...

class Retract(_message.Message):
    __slots__ = ("feedback_id",)
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    def __init__(self, feedback_id: _Optional[str] = ...) -> None: ...

class SendFeedbackResponse(_message.Message):
    __slots__ = ("feedback_id", "status", "error")
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    status: FeedbackStatus
    error: FeedbackError
    def __init__(self, feedback_id: _Optional[str] = ..., status: _Optional[_Union[FeedbackStatus, str]] = ..., error: _Optional[_Union[FeedbackError, _Mapping]] = ...) -> None: ...

class FeedbackError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class GetReceiptRequest(_message.Message):
    __slots__ = ("feedback_id",)
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    def __init__(self, feedback_id: _Optional[str] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("feedback_id", "state", "reason", "recorded_at", "used_in_version", "live_since")
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RECORDED_AT_FIELD_NUMBER: _ClassVar[int]
    USED_IN_VERSION_FIELD_NUMBER: _ClassVar[int]
    LIVE_SINCE_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    state: ReceiptState
    reason: str
    recorded_at: _timestamp_pb2.Timestamp
    used_in_version: int
    live_since: _timestamp_pb2.Timestamp
    def __init__(self, feedback_id: _Optional[str] = ..., state: _Optional[_Union[ReceiptState, str]] = ..., reason: _Optional[str] = ..., recorded_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., used_in_version: _Optional[int] = ..., live_since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

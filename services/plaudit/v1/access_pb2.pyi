from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor

class CallerRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CALLER_ROLE_UNSPECIFIED: _ClassVar[CallerRole]
    CALLER_ROLE_PREDICT: _ClassVar[CallerRole]
    CALLER_ROLE_FEEDBACK: _ClassVar[CallerRole]
    CALLER_ROLE_ADMIN: _ClassVar[CallerRole]
CALLER_ROLE_UNSPECIFIED: CallerRole
CALLER_ROLE_PREDICT: CallerRole
CALLER_ROLE_FEEDBACK: CallerRole
CALLER_ROLE_ADMIN: CallerRole
ROLE_FIELD_NUMBER: _ClassVar[int]
role: _descriptor.FieldDescriptor

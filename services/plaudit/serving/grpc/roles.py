"""Role that each method needs: of our own from the protos' option, of the others' from a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.descriptor import ServiceDescriptor

from plaudit.core.access import CallerRole
from plaudit.inference import open_inference_pb2
from plaudit.v1 import access_pb2, feedback_pb2, model_pb2, prediction_pb2

_FROM_WIRE: Final = {
    access_pb2.CALLER_ROLE_PREDICT: CallerRole.PREDICT,
    access_pb2.CALLER_ROLE_FEEDBACK: CallerRole.FEEDBACK,
    access_pb2.CALLER_ROLE_ADMIN: CallerRole.ADMIN,
}

_INFERENCE: Final[Mapping[str, CallerRole | None]] = {
    "ServerLive": None,  # what the health of a container is asked by, as with Triton
    "ServerReady": None,
    "ModelReady": CallerRole.PREDICT,
    "ServerMetadata": CallerRole.PREDICT,
    "ModelMetadata": CallerRole.PREDICT,
    "ModelInfer": CallerRole.PREDICT,
    "ModelStreamInfer": CallerRole.PREDICT,
    "ModelConfig": CallerRole.PREDICT,
    "ModelStatistics": CallerRole.PREDICT,
    "RepositoryIndex": CallerRole.ADMIN,
    "RepositoryModelLoad": CallerRole.ADMIN,
    "RepositoryModelUnload": CallerRole.ADMIN,
}
_OTHERS: Final[Mapping[str, CallerRole | None]] = {
    "/grpc.health.v1.Health/Check": None,
    "/grpc.health.v1.Health/Watch": None,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": CallerRole.ADMIN,
}


def declared(service: ServiceDescriptor) -> Mapping[str, CallerRole | None]:
    """Roles that the methods of one of our services declare; a method that declares none is not among them."""
    option: Any = access_pb2.role
    roles = {}
    for method in service.methods:
        role = _FROM_WIRE.get(method.GetOptions().Extensions[option])
        if role is not None:
            roles[f"/{service.full_name}/{method.name}"] = role
    return roles


ROLES: Final[Mapping[str, CallerRole | None]] = {
    **declared(prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"]),
    **declared(feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"]),
    **declared(model_pb2.DESCRIPTOR.services_by_name["ModelService"]),
    **{
        f"/{open_inference_pb2.DESCRIPTOR.services_by_name['GRPCInferenceService'].full_name}/{method}": role
        for method, role in _INFERENCE.items()
    },
    **_OTHERS,
}
"""Role by full method name; None: anybody may call it. What is not here nobody may call."""

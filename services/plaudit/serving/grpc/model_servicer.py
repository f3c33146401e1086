"""``plaudit.v1.ModelService``: decode, call, encode. Nothing is decided here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from plaudit.core.access import CallerRole
from plaudit.core.rollout import Rollout
from plaudit.serving.engine.call_context import CallContext
from plaudit.serving.grpc.auth import principal_of
from plaudit.serving.grpc.context import timestamp
from plaudit.serving.grpc.open_calls import OpenCalls
from plaudit.serving.use_cases.rollouts import RolloutService
from plaudit.v1 import model_pb2, model_pb2_grpc
from plaudit_models.bundle import Manifest, VersionKind

_KINDS: Final[Mapping[VersionKind, model_pb2.VersionKind]] = {
    "pretrained": model_pb2.VERSION_KIND_PRETRAINED,
    "head": model_pb2.VERSION_KIND_HEAD,
    "finetuned": model_pb2.VERSION_KIND_FINETUNED,
    "imported": model_pb2.VERSION_KIND_IMPORTED,
}


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Admins are shown whole manifests, and everybody else the spec that clients need."""

    def __init__(self, rollouts: RolloutService, open_calls: OpenCalls) -> None:
        self._rollouts = rollouts
        self._open_calls = open_calls

    def ListVersions(self, request: model_pb2.ListVersionsRequest, context: Any) -> model_pb2.ListVersionsResponse:
        manifests, rollout = self._rollouts.all(request.model)
        whole = _is_admin(context)
        return model_pb2.ListVersionsResponse(
            versions=[_version_to_wire(manifest, whole=whole) for manifest in manifests],
            rollout=_rollout_to_wire(rollout, whole=whole),
        )

    def GetVersion(self, request: model_pb2.GetVersionRequest, context: Any) -> model_pb2.GetVersionResponse:
        manifest = self._rollouts.one(request.model, request.version)
        whole = _is_admin(context)
        experiment = self._rollouts.experiment(request.model, request.version) if whole else None
        return model_pb2.GetVersionResponse(
            version=_version_to_wire(manifest, whole=whole),
            experiment_json="" if experiment is None else json.dumps(experiment),
        )

    def Promote(self, request: model_pb2.PromoteRequest, context: Any) -> model_pb2.PromoteResponse:
        rollout = self._rollouts.promote(
            request.model, request.version, request.expected_generation, request.actor, request.reason
        )
        return model_pb2.PromoteResponse(rollout=_rollout_to_wire(rollout))

    def Rollback(self, request: model_pb2.RollbackRequest, context: Any) -> model_pb2.RollbackResponse:
        rollout = self._rollouts.rollback(request.model, request.expected_generation, request.actor, request.reason)
        return model_pb2.RollbackResponse(rollout=_rollout_to_wire(rollout))

    def Pin(self, request: model_pb2.PinRequest, context: Any) -> model_pb2.PinResponse:
        rollout = self._rollouts.pin(
            request.model, request.version, request.expected_generation, request.actor, request.reason
        )
        return model_pb2.PinResponse(rollout=_rollout_to_wire(rollout))

    def StartCanary(self, request: model_pb2.StartCanaryRequest, context: Any) -> model_pb2.StartCanaryResponse:
        rollout = self._rollouts.start_canary(
            request.model,
            request.version,
            request.share,
            request.shadow,
            request.expected_generation,
            request.actor,
            request.reason,
        )
        return model_pb2.StartCanaryResponse(rollout=_rollout_to_wire(rollout))

    def StopCanary(self, request: model_pb2.StopCanaryRequest, context: Any) -> model_pb2.StopCanaryResponse:
        rollout = self._rollouts.stop_canary(
            request.model, request.version, request.expected_generation, request.actor, request.reason
        )
        return model_pb2.StopCanaryResponse(rollout=_rollout_to_wire(rollout))

    def WatchVersions(
        self, request: model_pb2.WatchVersionsRequest, context: Any
    ) -> Iterator[model_pb2.WatchVersionsResponse]:
        opened = self._open_calls.of(context)
        call = CallContext(is_active=lambda: opened.closed is None and context.is_active())
        whole = _is_admin(context)
        for rollout in self._rollouts.watch(request.model, self._open_calls.shutdown, call):
            yield model_pb2.WatchVersionsResponse(rollout=_rollout_to_wire(rollout, whole=whole))


def _is_admin(context: Any) -> bool:
    return CallerRole.ADMIN in principal_of(context).roles


def _version_to_wire(manifest: Manifest, *, whole: bool) -> model_pb2.Version:
    """The version; unless ``whole``, without the evidence and the reason."""
    shown = manifest.to_json() if whole else json.dumps({"spec": manifest.spec.to_dict()})
    return model_pb2.Version(
        version=manifest.version,
        digest=manifest.digest,
        parent=manifest.parent or 0,
        kind=_KINDS.get(manifest.kind, model_pb2.VERSION_KIND_UNSPECIFIED),
        created_at=timestamp(manifest.created_at_s),
        reason=manifest.reason if whole else "",
        manifest_json=shown,
    )


def _rollout_to_wire(rollout: Rollout, *, whole: bool = True) -> model_pb2.Rollout:
    """The rollout; unless ``whole``, without its author and the reason."""
    return model_pb2.Rollout(
        model=rollout.model,
        generation=rollout.generation,
        live=rollout.live or 0,
        previous=rollout.previous or 0,
        gated=rollout.gated or 0,
        candidate=rollout.candidate or 0,
        candidate_share=rollout.candidate_share,
        pinned=rollout.pinned,
        changed_at=timestamp(rollout.changed_at_s) if rollout.generation else None,
        reason=rollout.reason if whole else "",
        actor=rollout.actor if whole else "",
        shadow=rollout.shadow,
        experiment=rollout.experiment,
    )

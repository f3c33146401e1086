"""``inference.GRPCInferenceService``: decode, call, encode. Nothing is decided here.

``ModelInfer`` answers with bytes, which the converters put together.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

import grpc
from google.protobuf.message import Message

import plaudit
from plaudit.core.access import Principal
from plaudit.core.errors import InvalidInput, NotFound, Unavailable
from plaudit.core.ports.runtime import ServableModel
from plaudit.inference import open_inference_pb2 as pb
from plaudit.serving.engine.call_context import CallContext
from plaudit.serving.grpc.auth import principal_of
from plaudit.serving.grpc.context import call_context
from plaudit.serving.grpc.interceptors import reader_of, status_of
from plaudit.serving.grpc.open_calls import OpenCalls
from plaudit.serving.grpc.open_inference.converters import (
    BYTES,
    Contract,
    Tensor,
    flag,
    prediction_request,
    streamed,
    streamed_error,
    user_of,
    version_of,
)
from plaudit.serving.grpc.streams import Put, in_order
from plaudit.serving.models.served_models import ServedModels
from plaudit.serving.telemetry.statistics import BatchSize, Spent, Totals
from plaudit.serving.use_cases.predict import PredictUseCase

SERVICE: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]

_STREAM_LIMIT: Final = 64
"""Requests of one stream that are worked on at once."""
_PLATFORM: Final = "onnxruntime_onnx"
_BACKEND: Final = "onnxruntime"
_EXTENSIONS: Final = ("model_repository", "model_configuration", "statistics")
_READ_INFER: Final = reader_of(pb.ModelInferRequest.FromString)
_READY: Final = "READY"
_UNAVAILABLE: Final = "UNAVAILABLE"


class InferenceServicer:
    """Args:
    max_rows: the most rows of one request.
    pool: works on the requests of streams.
    """

    def __init__(
        self,
        models: ServedModels,
        predict: PredictUseCase,
        *,
        max_rows: int,
        pool: Executor,
        open_calls: OpenCalls,
    ) -> None:
        self._models = models
        self._predict = predict
        self._max_rows = max_rows
        self._pool = pool
        self._open_calls = open_calls
        self._shutdown = open_calls.shutdown
        self._contracts: WeakKeyDictionary[ServableModel, Contract] = WeakKeyDictionary()
        self._making = threading.Lock()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Handlers of all methods, for a server."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in SERVICE.methods:
            behaviour = getattr(self, method.name)
            if method.name == "ModelStreamInfer":
                methods[method.name] = grpc.stream_stream_rpc_method_handler(behaviour)
            else:
                methods[method.name] = grpc.unary_unary_rpc_method_handler(
                    behaviour,
                    request_deserializer=getattr(pb, method.input_type.name).FromString,
                    response_serializer=None if method.name == "ModelInfer" else _serialise,
                )
        return grpc.method_handlers_generic_handler(SERVICE.full_name, methods)

    # --- inference -----------------------------------------------------------------------------------------------

    def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> bytes:
        return self._infer(request, principal_of(context), call_context(context))

    def ModelStreamInfer(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Answers in the order of the requests; one that is refused is answered too, and the stream goes on.

        Each is read where it is worked on, so that one that cannot be read does not end the stream.
        """

        opened, caller = self._open_calls.of(context), principal_of(context)

        def read(put: Put[bytes]) -> None:
            for request in requests:
                opened.wait_for_room(len(request))
                opened.take(len(request))
                put(partial(self._infer_streamed, request, caller, call_context(context)), len(request))

        return in_order(read, self._pool, self._open_calls, context, limit=_STREAM_LIMIT)

    def _infer(self, message: pb.ModelInferRequest, caller: Principal, call: CallContext) -> bytes:
        user_id = caller.user_of(user_of(message))
        binding = self._models.bind(message.model_name, user_id, version_of(message.model_version))
        contract = self._contract(binding.model)
        choice = contract.choice(message.outputs)
        rows = contract.rows(message, max_rows=self._max_rows)
        try:
            predictions = self._predict.predict(prediction_request(message, rows, choice, user_id), call, binding)
        except InvalidInput as error:
            raise InvalidInput(error.field.replace("content", "inputs", 1), error.problem) from error
        return choice.response(predictions, message.id)

    def _infer_streamed(self, request: bytes, caller: Principal, call: CallContext) -> bytes:
        request_id, marked_final = "", False
        try:
            message = _READ_INFER(request)
            request_id = message.id
            marked_final = flag(message.parameters, "triton_enable_empty_final_response")
            response = self._infer(message, caller, call)
        except Exception as error:
            _, text = status_of(error, f"{SERVICE.name}/ModelStreamInfer")
            return streamed_error(text, request_id, marked_final=marked_final)
        return streamed(response, marked_final=marked_final)

    def _contract(self, model: ServableModel) -> Contract:
        contract = self._contracts.get(model)
        if contract is None:
            with self._making:
                contract = self._contracts.setdefault(model, Contract(model))
        return contract

    # --- state and metadata --------------------------------------------------------------------------------------

    def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=not self._shutdown.is_set() and self._models.ready())

    def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:
        """A model that is unknown is not ready, as with Triton."""
        try:
            self._models.pick(request.name).live.bound(version_of(request.version))
        except (NotFound, Unavailable):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=not self._shutdown.is_set())

    def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Any) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="plaudit", version=plaudit.__version__, extensions=_EXTENSIONS)

    def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:
        served = self._models.pick(request.name)
        contract = self._contract(served.live.bound(version_of(request.version))[0])
        return pb.ModelMetadataResponse(
            name=served.live.name,
            versions=[str(version) for version in served.live.loaded_versions()],
            platform=_PLATFORM,
            inputs=[_metadata(tensor) for tensor in contract.inputs.values()],
            outputs=[_metadata(tensor) for tensor in contract.outputs.values()],
        )

    def ModelConfig(self, request: pb.ModelConfigRequest, context: Any) -> pb.ModelConfigResponse:
        served = self._models.pick(request.name)
        contract = self._contract(served.live.bound(version_of(request.version))[0])
        config = pb.ModelConfig(
            name=served.live.name,
            platform=_PLATFORM,
            backend=_BACKEND,
            max_batch_size=self._max_rows,
            input=[
                pb.ModelInput(
                    name=each.name, data_type=_data_type(each.datatype), dims=each.shape, optional=each.optional
                )
                for each in contract.inputs.values()
            ],
            output=[
                pb.ModelOutput(name=each.name, data_type=_data_type(each.datatype), dims=each.shape)
                for each in contract.outputs.values()
            ],
            dynamic_batching=pb.ModelDynamicBatching(preferred_batch_size=[served.live.best_batch]),
            model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
        )
        return pb.ModelConfigResponse(config=config)

    def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Any) -> pb.ModelStatisticsResponse:
        version = version_of(request.version)
        statistics = []
        for served in [self._models.pick(request.name)] if request.name else self._models.all():
            versions: Sequence[int] = served.live.loaded_versions() if version is None else [version]
            for each in versions:
                totals = self._models.statistics.of(served.live.bound(each)[0]).totals()
                statistics.append(_statistics(served.live.name, each, totals))
        return pb.ModelStatisticsResponse(model_stats=statistics)

    # --- the repository ------------------------------------------------------------------------------------------

    def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Any) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        index = []
        for name in self._models.known():
            index += [each for each in self._index(name) if each.state == _READY or not request.ready]
        return pb.RepositoryIndexResponse(models=index)

    def _index(self, name: str) -> Sequence[pb.RepositoryIndexResponse.ModelIndex]:
        served = self._models.get(name)
        if served is None:
            return [pb.RepositoryIndexResponse.ModelIndex(name=name, state=_UNAVAILABLE, reason="unloaded")]
        versions = served.live.loaded_versions()
        if not versions:
            return [pb.RepositoryIndexResponse.ModelIndex(name=name, state=_UNAVAILABLE, reason="no version serves")]
        return [
            pb.RepositoryIndexResponse.ModelIndex(name=name, version=str(version), state=_READY) for version in versions
        ]

    def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Any
    ) -> pb.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        if request.parameters:
            raise InvalidInput(
                "parameters",
                f"holds {sorted(request.parameters)[:3]}; a model is loaded as its registry has it, without any",
            )
        self._models.load(_named(request.model_name)).live.serving()
        return pb.RepositoryModelLoadResponse()

    def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Any
    ) -> pb.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        self._models.unload(_named(request.model_name))
        return pb.RepositoryModelUnloadResponse()


# --- requests --------------------------------------------------------------------------------------------------------


def _named(model: str) -> str:
    if not model:
        raise InvalidInput("model_name", "is empty; name the model")
    return model


def _check_repository(name: str) -> None:
    if name:
        raise InvalidInput("repository_name", f"{name[:80]!r} is unknown; there is one repository, leave it empty")


# --- messages --------------------------------------------------------------------------------------------------------


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()


def _metadata(tensor: Tensor) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=(-1, *tensor.shape)
    )


def _data_type(datatype: str) -> pb.DataType:
    data_type: pb.DataType = getattr(pb, "TYPE_STRING" if datatype == BYTES else f"TYPE_{datatype}")
    return data_type


def _statistics(name: str, version: int, totals: Totals) -> pb.ModelStatistics:
    return pb.ModelStatistics(
        name=name,
        version=str(version),
        last_inference=totals.last_ms,
        inference_count=totals.rows,
        execution_count=totals.batches,
        inference_stats=pb.InferStatistics(
            success=_spent(totals.success),
            fail=_spent(totals.fail),
            queue=_spent(totals.queue),
            compute_input=_spent(totals.input),
            compute_infer=_spent(totals.infer),
            compute_output=_spent(totals.output),
        ),
        batch_stats=[_batch_statistics(rows, size) for rows, size in totals.sizes.items()],
    )


def _batch_statistics(rows: int, size: BatchSize) -> pb.InferBatchStatistics:
    return pb.InferBatchStatistics(
        batch_size=rows,
        compute_input=_spent(size.input),
        compute_infer=_spent(size.infer),
        compute_output=_spent(size.output),
    )


def _spent(spent: Spent) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=spent.count, ns=spent.ns)

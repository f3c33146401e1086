"""Requests of clients: an Open Inference Protocol request of 75 KB with three ready tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.serving.graphs import request_arrays
from benchmarks.serving.load import write_requests
from plaudit.inference import open_inference_pb2 as pb

INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
PREDICT: Final = "/plaudit.v1.PredictionService/Predict"
_DATATYPES: Final = {"float32": "FP32", "int64": "INT64"}


def infer_requests(path: Path, model: str, count: int = 16) -> Path:
    """Write requests that name no outputs, which asks for all."""
    rng = np.random.default_rng(0)
    requests = []
    for _ in range(count):
        arrays = request_arrays(rng)
        inputs = [
            pb.ModelInferRequest.InferInputTensor(name=name, datatype=_DATATYPES[array.dtype.name], shape=array.shape)
            for name, array in arrays.items()
        ]
        raw = [array.tobytes() for array in arrays.values()]
        request = pb.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=raw)
        requests.append(request.SerializeToString())
    write_requests(path, requests)
    return path

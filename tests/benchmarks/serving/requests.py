"""What clients send: an Open Inference Protocol request of 75 KB with three ready tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from benchmarks.serving.load import write_requests
from benchmarks.serving.models import SHAPES, rows
from plaudit.inference import open_inference_pb2 as pb

INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
PREDICT: Final = "/plaudit.v1.PredictionService/Predict"


def infer_requests(path: Path, model: str, count: int = 16) -> Path:
    """All outputs are asked for, which is what clients get who name none."""
    data = rows(count)
    requests = []
    for row in range(count):
        inputs = [
            pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=(1, *shape))
            for name, (datatype, shape) in SHAPES.items()
        ]
        raw = [data[name][row].tobytes() for name in SHAPES]
        requests.append(
            pb.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=raw).SerializeToString()
        )
    write_requests(path, requests)
    return path

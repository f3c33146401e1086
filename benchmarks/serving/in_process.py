"""Prints the rate at which this process calls decode and model itself, and the processor time of each request;
no server, no log.

    python -m benchmarks.serving.in_process VERSION_FOLDER REQUESTS SECONDS

The best of several batch sizes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.serving.load import read_requests
from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.core.wire import contents_from_wire
from plaudit.serving.engine.decoding import decode_content
from plaudit.v1 import prediction_pb2
from plaudit_models.limits import Limits
from plaudit_models.preprocess import Batch

BATCHES = (1, 2, 4, 8)
_WARM_S = 0.3


def main(folder: Path, requests: Path, seconds: float) -> None:
    model = OnnxRuntime("cpu").load(folder)
    contents = [
        contents_from_wire(prediction_pb2.PredictRequest.FromString(data).content) for data in read_requests(requests)
    ]
    buffer = Batch(model.manifest.spec, max(BATCHES))
    best = {"per_s": 0.0, "cpu_us": 0.0}
    at = 0
    for size in BATCHES:
        for duration_s in (_WARM_S, seconds / len(BATCHES)):
            done, began_s, began_cpu_s = 0, time.perf_counter(), time.process_time()
            while time.perf_counter() - began_s < duration_s:
                group = [contents[(at + place) % len(contents)] for place in range(size)]
                trunk = model.trunk(buffer.fill([decode_content(content, model, Limits()) for content in group]))
                model.head(trunk.embedding, trunk.base_logits)
                done, at = done + size, at + size
        per_s = done / (time.perf_counter() - began_s)
        if per_s > best["per_s"]:
            best = {"per_s": per_s, "cpu_us": (time.process_time() - began_cpu_s) / done * 1e6}
    print(json.dumps(best))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))

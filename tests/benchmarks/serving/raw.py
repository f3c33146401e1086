"""Prints the raw ONNX Runtime rate on this process's core by batch size: one batch after another on ready inputs.

python -m benchmarks.serving.raw FILE.onnx SECONDS
"""

from __future__ import annotations

import json
import sys
import time

import onnxruntime as ort

from benchmarks.serving.models import rows

BATCHES = (1, 2, 4, 8, 16)


def main(path: str, seconds: float) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    rates = {}
    for batch in BATCHES:
        inputs = rows(batch)
        for _ in range(3):
            session.run(None, inputs)
        done, began_s = 0, time.perf_counter()
        while time.perf_counter() - began_s < seconds:
            session.run(None, inputs)
            done += 1
        rates[batch] = done * batch / (time.perf_counter() - began_s)
    print(json.dumps(rates))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

"""Prints the raw ONNX Runtime rate on this process's core and the processor time of a request, at the best batch size.

One batch after another on ready inputs.

python -m benchmarks.serving.raw FILE.onnx SECONDS
"""

from __future__ import annotations

import json
import sys
import time
from typing import Final

import numpy as np
import onnxruntime as ort

from benchmarks.serving.graphs import request_arrays

BATCHES: Final = (1, 2, 4, 8, 16)
_ROUNDS: Final = 2


def main(path: str, seconds: float) -> None:
    """``seconds`` for each batch size, in rounds, so that a slow moment does not hit one size alone."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    inputs = {batch: request_arrays(rng, batch) for batch in BATCHES}
    for batch in BATCHES:
        session.run(None, inputs[batch])
    done, spent_s, used_s = dict.fromkeys(BATCHES, 0), dict.fromkeys(BATCHES, 0.0), dict.fromkeys(BATCHES, 0.0)
    for _ in range(_ROUNDS):
        for batch in BATCHES:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            while time.perf_counter() - began_s < seconds / _ROUNDS:
                session.run(None, inputs[batch])
                done[batch] += batch
            spent_s[batch] += time.perf_counter() - began_s
            used_s[batch] += time.process_time() - began_cpu_s
    best = max(BATCHES, key=lambda batch: done[batch] / spent_s[batch])
    print(json.dumps({"per_s": done[best] / spent_s[best], "cpu_us": used_s[best] / done[best] * 1e6, "batch": best}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

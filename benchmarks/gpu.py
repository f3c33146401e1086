"""What an NVIDIA GPU makes of the two models of the serving benchmark: rows a second, beside the processor.

Exits with 2 where there is no GPU that onnxruntime can use.

python -m benchmarks.gpu [--seconds S] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from benchmarks.serving.graphs import SIZES, request_arrays, transformer
from plaudit.adapters.runtime.session import Graph, choose_providers
from plaudit.core.errors import ConfigError

BATCHES: Final = (1, 8, 32)
OUTPUTS: Final = ("logits", "hidden")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each batch size")
    parser.add_argument("--out", type=Path, default=Path("build/bench-gpu.json"))
    options = parser.parse_args()
    try:
        choose_providers("cuda")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    measured = {}
    with tempfile.TemporaryDirectory() as made:
        for name, size in SIZES.items():
            path = Path(made) / f"{name}.onnx"
            onnx.save(transformer(size, seed=0), path)
            graphs = {
                "processor": Graph(path, choose_providers("cpu"), 1),
                "cuda": Graph(path, choose_providers("cuda"), 1),
                "cuda graphs": Graph(path, choose_providers("cuda", cuda_graphs=True), 1, cuda_graphs=True),
            }
            measured[name] = {where: rates(graph, BATCHES, options.seconds) for where, graph in graphs.items()}
            for where, by_batch in measured[name].items():
                cells = "  ".join(f"{rate:9.0f}/s in batches of {batch}" for batch, rate in by_batch.items())
                print(f"{name:6} {where:12} {cells}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    return 0


def rates(graph: Graph, batches: Sequence[int], seconds: float) -> Mapping[int, float]:
    """Rows a second by batch size, one batch after another, copies to and from the device included."""
    rng = np.random.default_rng(0)
    found = {}
    for batch in batches:
        inputs = request_arrays(rng, batch)
        for _ in range(3):  # allocates, and captures
            graph.run(OUTPUTS, inputs)
        done, began_s = 0, time.perf_counter()
        while (took_s := time.perf_counter() - began_s) < seconds or not done:
            graph.run(OUTPUTS, inputs)
            done += batch
        found[batch] = done / took_s
    return found


if __name__ == "__main__":
    sys.exit(main())

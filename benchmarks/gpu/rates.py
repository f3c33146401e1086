"""Rows a second of the two models of the serving benchmark on an NVIDIA GPU, beside the processor."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from benchmarks.measure import Measure
from benchmarks.serving.graphs import SIZES, request_arrays, transformer
from plaudit.adapters.runtime.session import Graph, choose_providers

BATCHES: Final = (1, 8, 32)
OUTPUTS: Final = ("logits", "hidden")


def run(seconds: float, *, quick: bool) -> list[Measure]:
    if quick:
        seconds = min(seconds, 0.05)
    measures = []
    with tempfile.TemporaryDirectory() as made:
        for name, size in SIZES.items():
            path = Path(made) / f"{name}.onnx"
            onnx.save(transformer(size, seed=0), path)
            graphs = {
                "processor": Graph(path, choose_providers("cpu"), 1),
                "cuda": Graph(path, choose_providers("cuda"), 1),
                "cuda graphs": Graph(path, choose_providers("cuda", cuda_graphs=True), 1, cuda_graphs=True),
            }
            for device, graph in graphs.items():
                for batch in BATCHES:
                    title = f"{name}, {device}, batches of {batch}"
                    measures.append(Measure(title, rows_per_s(graph, batch, seconds), unit="1/s"))
    return measures


def rows_per_s(graph: Graph, batch: int, seconds: float) -> float:
    """Rate of one batch after another, copies to and from the device included."""
    inputs = request_arrays(np.random.default_rng(0), batch)
    for _ in range(3):  # allocates, and captures
        graph.run(OUTPUTS, inputs)
    done, began_s = 0, time.perf_counter()
    while (took_s := time.perf_counter() - began_s) < seconds or not done:
        graph.run(OUTPUTS, inputs)
        done += batch
    return done / took_s

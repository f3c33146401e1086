"""Sessions: where graphs run, what is asked for and not there, and that bound buffers compute what unbound ones do."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from plaudit.adapters.runtime.session import (
    CPU,
    CUDA,
    TENSORRT,
    Graph,
    bucket,
    choose_providers,
    gpu_providers,
    return_free_memory,
)
from plaudit.core.errors import ConfigError
from plaudit_models.bundle import TRUNK
from plaudit_models.spec import BASE_LOGITS, EMBEDDING
from support.builders import golden_inputs, run_graph, tiny_bundle, tiny_spec

ON_CPU: list[tuple[str, dict[str, Any]]] = [(CPU, {})]


def gpu_at_hand() -> bool:
    try:
        choose_providers("cuda")
    except ConfigError:
        return False
    return True


needs_gpu = pytest.mark.skipif(not gpu_at_hand(), reason="there is no NVIDIA GPU that onnxruntime can use")


def inputs_of(rows: int, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """For the tiny trunk; each seed gives others."""
    order = np.random.default_rng(seed).integers(0, 64, rows)
    return {name: array[order] for name, array in golden_inputs(tiny_spec(), rows=64).items()}


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    tiny_bundle(tmp_path / "v1")
    return tmp_path / "v1" / TRUNK


# --- providers -------------------------------------------------------------------------------------------------------


def test_what_cuda_is_told() -> None:
    (cuda, options), last = gpu_providers(None, cuda_graphs=False, tensorrt_dir=None)
    assert (cuda, last) == (CUDA, (CPU, {}))
    assert "gpu_mem_limit" not in options
    assert (options["enable_cuda_graph"], options["use_tf32"]) == ("0", "0")
    (_, options), _ = gpu_providers(2**30, cuda_graphs=True, tensorrt_dir=None)
    assert (options["gpu_mem_limit"], options["enable_cuda_graph"]) == ("1073741824", "1")


def test_tensorrt_goes_first_and_keeps_its_engines() -> None:
    (first, options), (second, _), (third, _) = gpu_providers(None, cuda_graphs=True, tensorrt_dir=Path("/engines"))
    assert (first, second, third) == (TENSORRT, CUDA, CPU)
    assert (options["trt_engine_cache_enable"], options["trt_engine_cache_path"]) == ("1", "/engines")
    assert options["trt_cuda_graph_enable"] == "1"


def test_the_processor_when_asked_for() -> None:
    assert choose_providers("cpu", gpu_mem_limit_bytes=1) == ON_CPU


@pytest.mark.parametrize(
    ("wanted", "setting"),
    [({"cuda_graphs": True}, "serving.cuda_graphs: true"), ({"tensorrt_dir": Path("/e")}, "serving.tensorrt: true")],
)
def test_what_needs_a_gpu_is_refused_on_the_processor(wanted: dict[str, Any], setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"{setting} was asked for, but serving\.device is 'cpu'"):
        choose_providers("cpu", **wanted)


@pytest.mark.parametrize(
    ("device", "wanted", "setting"),
    [
        ("cuda", {}, "serving.device: 'cuda'"),
        ("auto", {"cuda_graphs": True}, "serving.cuda_graphs: true"),
        ("auto", {"tensorrt_dir": Path("/e")}, "serving.tensorrt: true"),
    ],
)
def test_what_is_asked_for_and_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, device: Literal["auto", "cuda"], wanted: dict[str, Any], setting: str
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CPU])
    with pytest.raises(ConfigError, match=rf"{setting} was asked for, .*; install the extra `gpu`"):
        choose_providers(device, **wanted)
    assert choose_providers("auto") == ON_CPU


@pytest.mark.skipif(gpu_at_hand(), reason="here a session can use what is offered")
def test_what_is_offered_but_does_not_work_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with onnxruntime-gpu on a machine without a GPU: sessions then go on without it, and only their list of
    providers says so."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])
    with pytest.warns(UserWarning, match=CUDA), pytest.raises(ConfigError, match=f"cannot load {CUDA}"):
        choose_providers("cuda")
    with pytest.warns(UserWarning, match=CUDA):
        assert choose_providers("auto") == ON_CPU


# --- bound buffers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16), (33, 64)])
def test_batches_are_padded_to_a_power_of_two(rows: int, size: int) -> None:
    assert bucket(rows) == size


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_bound_buffers_give_what_unbound_ones_give(trunk: Path, cuda_graphs: bool) -> None:
    graph = Graph(trunk, ON_CPU, 1, cuda_graphs=cuda_graphs, bind="cpu")
    found = []
    for rows in (1, 3, 8, 3, 5):
        inputs = inputs_of(rows, seed=rows)
        found.append((run_graph(trunk, inputs), graph.run([BASE_LOGITS, EMBEDDING], inputs)))
    for expected, (base_logits, embedding) in found:  # compared after all: no run wrote over another's outputs
        np.testing.assert_allclose(base_logits, expected[BASE_LOGITS], atol=1e-6)
        np.testing.assert_allclose(embedding, expected[EMBEDDING], atol=1e-6)


def test_threads_do_not_write_into_each_others_buffers(trunk: Path) -> None:
    graph = Graph(trunk, ON_CPU, 1, cuda_graphs=True, bind="cpu")

    def differs(seed: int) -> float:
        inputs = inputs_of(3, seed)
        expected = run_graph(trunk, inputs)[EMBEDDING]
        return max(float(np.abs(graph.run([EMBEDDING], inputs)[0] - expected).max()) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(differs, range(8))) < 1e-6


def test_every_dtype_can_be_bound(tmp_path: Path) -> None:
    kinds = {"bool": TensorProto.BOOL, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}
    kinds |= {"int64": TensorProto.INT64, "uint8": TensorProto.UINT8}
    path = save(
        tmp_path,
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds],
        {name: (kind, ["b", 2]) for name, kind in kinds.items()},
        {f"{name}_out": (kind, ["b", 2]) for name, kind in kinds.items()},
    )
    inputs = {name: np.array([[0, 1], [1, 1], [1, 0]]).astype(name) for name in kinds}
    graph = Graph(path, ON_CPU, 1, cuda_graphs=True, bind="cpu")
    for name, array in zip(kinds, graph.run([f"{name}_out" for name in kinds], inputs), strict=True):
        assert array.dtype == np.dtype(name)
        np.testing.assert_array_equal(array, inputs[name])


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_free_lengths_are_run_without_buffers(tmp_path: Path, cuda_graphs: bool) -> None:
    path = save(
        tmp_path,
        [helper.make_node("Neg", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ["b", "length"])},
        {"y": (TensorProto.FLOAT, ["b", "length"])},
    )
    graph = Graph(path, ON_CPU, 1, cuda_graphs=cuda_graphs, bind="cpu")
    for length in (2, 5):
        x = np.ones((3, length), np.float32)
        np.testing.assert_array_equal(graph.run(["y"], {"x": x})[0], -x)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_versions_that_are_gone_leave_no_memory_behind(tmp_path: Path) -> None:
    """Twelve of 16 MB each, two open at a time: in the end they take less than one more than the first two."""
    size = 2048
    weights = numpy_helper.from_array(np.random.default_rng(0).random((size, size), np.float32), "w")
    path = save(
        tmp_path,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ["b", size])},
        {"y": (TensorProto.FLOAT, ["b", size])},
        [weights],
    )
    opened: list[Graph] = []
    resident = []
    for _ in range(12):
        opened = [*opened[-1:], Graph(path, ON_CPU, 1)]
        opened[-1].run(["y"], {"x": np.ones((4, size), np.float32)})
        return_free_memory()
        resident.append(resident_bytes())
    assert resident[-1] - resident[1] < weights.ByteSize()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def save(folder: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], constants: Any = ()) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *what) for name, what in inputs.items()],
        [helper.make_tensor_value_info(name, *what) for name, what in outputs.items()],
        constants,
    )
    path = folder / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_gpu_gives_what_the_processor_gives(trunk: Path, cuda_graphs: bool) -> None:
    providers = choose_providers("cuda", gpu_mem_limit_bytes=2**30, cuda_graphs=cuda_graphs)
    graph = Graph(trunk, providers, 1, cuda_graphs=cuda_graphs)

    def differs(seed: int) -> float:
        worst = 0.0
        for rows in (1, 3, 8, 3, 5):
            inputs = inputs_of(rows, seed + rows)
            found = graph.run([EMBEDDING], inputs)[0]
            worst = max(worst, float(np.abs(found - run_graph(trunk, inputs)[EMBEDDING]).max()))
        return worst

    with ThreadPoolExecutor(3) as pool:
        assert max(pool.map(differs, range(6))) < 1e-4


@pytest.mark.gpu
@needs_gpu
def test_the_benchmark_of_a_gpu_measures_every_model_and_batch(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--seconds", "0.05", "--out", str(tmp_path)]
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root / 'tests'}:{root}"}
    done = subprocess.run(command, cwd=root, env=env, check=False, timeout=250)
    assert done.returncode == 0
    figures = json.loads((tmp_path / "gpu.json").read_text())["figures"]
    assert list(figures) == [
        f"rates: {model}, {device}, batches of {batch}"
        for model in ("small", "base")
        for device in ("processor", "cuda", "cuda graphs")
        for batch in (1, 8, 32)
    ]
    assert all(figure["value"] > 0 for figure in figures.values())


@pytest.mark.gpu
@needs_gpu
def test_tensorrt_gives_what_the_processor_gives(trunk: Path, tmp_path: Path) -> None:
    try:
        providers = choose_providers("cuda", tensorrt_dir=tmp_path)
    except ConfigError as error:
        pytest.skip(str(error))
    inputs = inputs_of(3)
    found = Graph(trunk, providers, 1).run([EMBEDDING], inputs)[0]
    np.testing.assert_allclose(found, run_graph(trunk, inputs)[EMBEDDING], atol=1e-3)


_ARENA = """
import numpy, onnx, pathlib, sys
from onnx import TensorProto, helper
from plaudit.adapters.runtime import session
from plaudit.core.text.reasons import told_reason

nodes = [helper.make_node("ConstantOfShape", ["n"], ["zeros"]), helper.make_node("ReduceSum", ["zeros"], ["y"])]
graph = helper.make_graph(
    nodes,
    "g",
    [helper.make_tensor_value_info("n", TensorProto.INT64, [1])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
)
path = pathlib.Path(sys.argv[1])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
assert session.arena_limit_bytes() > 2**28
session.arena_limit_bytes = lambda: 2**26
opened = session.Graph(path, [(session.CPU, {})], threads=1)
for length in (1_000, 40_000_000, 1_000):
    try:
        print(length, opened.run(["y"], {"n": numpy.array([length])})[0].ravel())
    except Exception as error:
        print(length, told_reason(error))
"""


def test_what_does_not_fit_into_the_machine_is_refused(tmp_path: Path) -> None:
    """A length that a request chooses, as of an output that is padded: 160 MB where 64 MiB are allowed."""
    done = subprocess.run(
        [sys.executable, "-c", _ARENA, str(tmp_path / "n.onnx")], capture_output=True, text=True, check=True, timeout=60
    )
    small, large, small_again = done.stdout.splitlines()
    assert small == small_again == "1000 [0.]"
    assert "smaller than requested bytes of 160000000" in large

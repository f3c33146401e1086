"""ONNX graphs in sessions: the device they run on, and the arrays' way there and back. Knows nothing about versions.

On an NVIDIA GPU arrays travel through buffers that are made once for each thread and batch size: page-locked memory of
the host, which the GPU reads directly, and memory of the device that the session is bound to. A batch size may then be
captured as a CUDA graph, which replays all kernels with one launch; as every captured size keeps its buffers, batches
are padded to a few sizes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime

from plaudit.adapters.runtime.watchdog import WATCHDOG
from plaudit.core.errors import ConfigError
from plaudit.core.ports.runtime import RunFailed
from plaudit.core.text.reasons import told_reason
from plaudit_models.bundle import CorruptBundle

Arrays = Mapping[str, npt.NDArray[Any]]
Device = Literal["auto", "cuda", "cpu"]
Providers = Sequence[tuple[str, Mapping[str, str]]]
"""Execution providers of onnxruntime with their options, the preferred one first."""

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"

_NUMPY_DTYPES: Final = {"float": "float32", "double": "float64"}
"""Numpy's names of dtypes that differ from onnxruntime's."""
_ARENA_SHARE: Final = 0.8
_PROBE: Final = (
    b'\x08\n:;\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x05probeZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x12"
)
"""An ONNX file, y = x with x float32 [1]; so short that making it would take longer to read."""


# --- where graphs run ------------------------------------------------------------------------------------------------


def choose_providers(
    device: Device,
    *,
    gpu_mem_limit_bytes: int | None = None,
    cuda_graphs: bool = False,
    tensorrt_dir: Path | None = None,
) -> Providers:
    """Execution providers to open sessions with.

    Args:
        device: ``auto`` takes CUDA where it works.
        gpu_mem_limit_bytes: the most GPU memory that a session may take; None: all there is.
        cuda_graphs: capture batch sizes as CUDA graphs.
        tensorrt_dir: use TensorRT, and keep the engines that it builds here; None: do not.

    Raises:
        ConfigError: a setting asks for a device or library that is not there.
    """
    wanted = [
        *(["serving.device: 'cuda'"] if device == "cuda" else []),
        *(["serving.tensorrt: true"] if tensorrt_dir is not None else []),
        *(["serving.cuda_graphs: true"] if cuda_graphs else []),
    ]
    if device == "cpu":
        missing = "serving.device is 'cpu'"
    else:
        providers = gpu_providers(gpu_mem_limit_bytes, cuda_graphs, tensorrt_dir)
        missing = _missing(providers)
        if not missing:
            return providers
    if wanted:
        raise ConfigError(
            f"{wanted[0]} was asked for, but {missing}; or leave the setting out, and models run where they can"
        )
    return [(CPU, {})]


def gpu_providers(gpu_mem_limit_bytes: int | None, cuda_graphs: bool, tensorrt_dir: Path | None) -> Providers:
    """Providers of :func:`choose_providers` on a GPU, whether or not there is one."""
    capture = str(int(cuda_graphs))
    cuda = {
        # The default tries every convolution algorithm for every new batch size, in the middle of a request.
        "cudnn_conv_algo_search": "HEURISTIC",
        # TF32 keeps 10 bits of mantissa: golden outputs would not be reproduced.
        "use_tf32": "0",
        # Doubling, the default, takes far more of the GPU than is used.
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": capture,
    }
    if gpu_mem_limit_bytes is not None:
        cuda["gpu_mem_limit"] = str(gpu_mem_limit_bytes)
    providers: list[tuple[str, Mapping[str, str]]] = [(CUDA, cuda), (CPU, {})]
    if tensorrt_dir is not None:
        tensorrt = {
            # An engine takes seconds to minutes to build.
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(tensorrt_dir),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(tensorrt_dir),
            "trt_cuda_graph_enable": capture,
        }
        providers.insert(0, (TENSORRT, tensorrt))
    return providers


def _missing(providers: Providers) -> str:
    """Reason why sessions cannot use all of the providers; "" if they can."""
    offered = onnxruntime.get_available_providers()
    absent = [name for name, _ in providers if name not in offered]
    if absent:
        return f"onnxruntime offers only {', '.join(offered)}, not {absent[0]}; install the extra `gpu`"
    # Offered are the providers that onnxruntime was built with. Whether there is a GPU, with its driver and libraries,
    # only a session shows: it goes on without a provider that it cannot load.
    with contextlib.redirect_stdout(sys.stderr):  # where it reports the libraries that it did not find
        onnxruntime.preload_dlls()
    try:
        session = onnxruntime.InferenceSession(_PROBE, providers=list(providers), enable_fallback=0)
    except RuntimeError as error:
        return f"onnxruntime cannot use it ({str(error).strip()})"
    unused = [name for name, _ in providers if name not in session.get_providers()]
    return f"onnxruntime cannot load {unused[0]}: a GPU, its driver, CUDA or cuDNN is missing" if unused else ""


# --- memory ----------------------------------------------------------------------------------------------------------


@functools.cache
def share_arena() -> None:
    """Let all sessions of the process keep their activations in one arena, instead of one at its peak each.

    A request may choose the size of an activation, such as a length to pad to: what does not fit into the machine is
    refused, where the system would end the process.
    """
    host = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    # All but the limit are onnxruntime's defaults.
    onnxruntime.create_and_register_allocator(host, onnxruntime.OrtArenaCfg(arena_limit_bytes(), -1, -1, -1))


def arena_limit_bytes() -> int:
    """Most memory for activations and weights: a share of what this process may have at all."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return round(_ARENA_SHARE * min(limits))


def return_free_memory() -> None:
    """Return freed memory that the C library keeps to the system.

    Opening a session holds its weights several times over for a moment. Without this the process would keep that
    memory, and more with every version that is loaded.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # glibc has it
        library.malloc_trim(0)


# --- graphs ----------------------------------------------------------------------------------------------------------


class Graph:
    """An ONNX graph in a session. Safe to use from several threads.

    A graph whose batch is fixed takes any number of rows as well: they are run in parts of that size, the last one
    filled up with its last row.

    Args:
        threads: threads that one run may use.
        data: contents of the file, which is not opened then; ``path`` is but its name.
        cuda_graphs: the providers capture CUDA graphs.
        bind: the device to bind buffers on, where all shapes but the batch are fixed; None: the providers' if it is a
            GPU.

    Attributes:
        fixed_rows: rows that the graph itself takes at once; 0: any number.

    Raises:
        CorruptBundle: onnxruntime cannot load it.
    """

    def __init__(
        self,
        path: Path,
        providers: Providers,
        threads: int,
        *,
        data: bytes | None = None,
        cuda_graphs: bool = False,
        bind: Literal["cuda", "cpu"] | None = None,
    ) -> None:
        self.path = path
        share_arena()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin while they wait take the processor from decoding and from the calls' threads.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.use_env_allocators", "1")
        # It plans one block for each batch size that occurs, which leaves holes of all sizes in the arena.
        options.enable_mem_pattern = False
        try:
            self._session = onnxruntime.InferenceSession(
                str(path) if data is None else data, options, providers=list(providers), enable_fallback=0
            )
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise CorruptBundle(f"{path.name}: onnxruntime cannot load it: {told_reason(error)}") from error
        self._bind = bind or ("cuda" if providers[0][0] != CPU else None)
        self._cuda_graphs = cuda_graphs
        self._capture_ids = itertools.count()
        self._of_thread = threading.local()
        first_axes = [value.shape[0] for value in self._session.get_inputs() if value.shape]
        self.fixed_rows: Final = first_axes[0] if first_axes and isinstance(first_axes[0], int) else 0
        free_inputs = [value.name for value in self._session.get_inputs() if not _has_fixed_lengths(value)]
        self._bindable = {
            value.name for value in self._session.get_outputs() if not free_inputs and _has_fixed_lengths(value)
        }

    def inputs(self) -> dict[str, tuple[str, list[Any]]]:
        """Name → ONNX type and shape."""
        return {i.name: (i.type, list(i.shape)) for i in self._session.get_inputs()}

    def run(self, names: Sequence[str], inputs: Arrays, deadline_s: float = math.inf) -> list[npt.NDArray[Any]]:
        """The outputs of these names, ``[b, …]`` like the inputs.

        Args:
            deadline_s: when the run is ended, on the clock of ``time.monotonic``.

        Raises:
            RunStopped: it was ended.
            RunFailed: the inputs do not suit the graph, or it cannot be run.
        """
        if self.fixed_rows:
            return self._run_in_parts(names, inputs, deadline_s)
        return self._run(names, inputs, deadline_s)

    def _run(self, names: Sequence[str], inputs: Arrays, deadline_s: float) -> list[npt.NDArray[Any]]:
        if self._bind is None or not self._bindable.issuperset(names):
            return self._run_unbound(names, inputs, deadline_s)
        rows = len(next(iter(inputs.values())))
        return self._bound(bucket(rows) if self._cuda_graphs else rows, tuple(names)).run(inputs, rows, deadline_s)

    def _run_in_parts(self, names: Sequence[str], inputs: Arrays, deadline_s: float) -> list[npt.NDArray[Any]]:
        size = self.fixed_rows
        rows = len(next(iter(inputs.values())))
        made = []
        for start in range(0, rows, size):
            part = {name: array[start : start + size] for name, array in inputs.items()}
            there = min(size, rows - start)
            if there < size:
                part = {name: np.concatenate([a, np.repeat(a[-1:], size - there, axis=0)]) for name, a in part.items()}
            outputs = self._run(names, part, deadline_s)
            made.append([array[:there] if array.shape[:1] == (size,) else array for array in outputs])
        if len(made) == 1:
            return made[0]
        return [pieces[0] if pieces[0].ndim == 0 else _joined(pieces) for pieces in zip(*made, strict=True)]

    def _run_unbound(self, names: Sequence[str], inputs: Arrays, deadline_s: float) -> list[npt.NDArray[Any]]:
        options = onnxruntime.RunOptions()
        if self._cuda_graphs:
            options.add_run_config_entry("gpu_graph_id", "-1")  # its buffers move, so it is not captured
        run: Callable[[Any], list[npt.NDArray[Any]]] = partial(self._session.run, names, inputs)
        return WATCHDOG.run(run, options, deadline_s)

    def _bound(self, size: int, names: tuple[str, ...]) -> _Bound:
        """Buffers of this thread, which no other thread writes to."""
        if not hasattr(self._of_thread, "bound"):
            self._of_thread.bound = {}
        bound: dict[tuple[int, tuple[str, ...]], _Bound] = self._of_thread.bound
        if (size, names) not in bound:
            capture_id = next(self._capture_ids) if self._cuda_graphs else None
            bound[size, names] = _Bound(self._session, size, names, self._bind, capture_id)
        return bound[size, names]


def bucket(rows: int) -> int:
    """The batch size that ``rows`` are padded to: 1, 2, 4, 8, …"""
    return 1 << (rows - 1).bit_length()


class _Bound:
    """A session bound to buffers for one batch size and choice of outputs. Not for several threads.

    Args:
        capture_id: names the CUDA graph of these buffers; None: nothing is captured.
    """

    def __init__(
        self, session: Any, size: int, names: tuple[str, ...], device: str | None, capture_id: int | None
    ) -> None:
        self._session = session
        self._capture_id = capture_id
        self._binding = session.io_binding()
        self._staged: dict[str, npt.NDArray[Any]] = {}
        self._inputs: dict[str, Any] = {}
        for value in session.get_inputs():
            staged = np.zeros((size, *value.shape[1:]), _dtype(value))
            if device == "cuda":
                _page_lock(staged)
            self._staged[value.name] = staged
            self._inputs[value.name] = onnxruntime.OrtValue.ortvalue_from_numpy(staged, device, 0)
            self._binding.bind_ortvalue_input(value.name, self._inputs[value.name])
        by_name = {value.name: value for value in session.get_outputs()}
        self._outputs = []
        for name in names:
            shape = (size, *by_name[name].shape[1:])
            output = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, _dtype(by_name[name]), device, 0)
            self._outputs.append(output)
            self._binding.bind_ortvalue_output(name, output)

    def run(self, inputs: Arrays, rows: int, deadline_s: float = math.inf) -> list[npt.NDArray[Any]]:
        for name, staged in self._staged.items():
            staged[:rows] = inputs[name]
            staged[rows:] = 0
            self._inputs[name].update_inplace(staged)
        options = onnxruntime.RunOptions()
        if self._capture_id is not None:
            options.add_run_config_entry("gpu_graph_id", str(self._capture_id))
        WATCHDOG.run(partial(self._session.run_with_iobinding, self._binding), options, deadline_s)
        return [np.array(output.numpy()[:rows]) for output in self._outputs]  # a copy: the next run writes over it


def _joined(pieces: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Rows of several runs. Raises RunFailed: they have lengths of their own, so they fit into no array."""
    if any(piece.shape[1:] != pieces[0].shape[1:] for piece in pieces):
        raise RunFailed(f"rows gave {sorted({piece.shape[1:] for piece in pieces})}; send them one by one")
    return np.concatenate(pieces)


def _has_fixed_lengths(value: Any) -> bool:
    """True if all lengths but that of the batch are fixed."""
    return all(isinstance(length, int) for length in value.shape[1:])


def _dtype(value: Any) -> np.dtype[Any]:
    name: str = value.type.removeprefix("tensor(").removesuffix(")")
    return np.dtype(_NUMPY_DTYPES.get(name, name))


def _page_lock(array: npt.NDArray[Any]) -> None:
    """Keep the array's memory where it is, as long as it lives, so that the GPU can read it directly."""
    runtime = ctypes.CDLL(f"libcudart.so.{onnxruntime.cuda_version.partition('.')[0]}")
    address = ctypes.c_void_p(array.ctypes.data)
    failed = runtime.cudaHostRegister(address, ctypes.c_size_t(array.nbytes), 0)
    if failed:
        raise OSError(f"{array.nbytes} bytes cannot be page-locked (CUDA error {failed})")
    weakref.finalize(array, runtime.cudaHostUnregister, address)

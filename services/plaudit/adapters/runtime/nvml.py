"""Memory of the GPUs of this machine, in all and in use, from NVIDIA's management library. Knows no metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        name: number of the GPU on this machine.
        memory_bytes: size of its memory.
        used_bytes: in use now, by any process; NaN if it cannot be read any more.
    """

    name: str
    memory_bytes: int
    used_bytes: Callable[[], float]


def gpus() -> Sequence[Gpu]:
    """Every GPU there is; none without a driver, or without ``nvidia-ml-py`` (the extra gpu)."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return [
            Gpu(str(number), int(pynvml.nvmlDeviceGetMemoryInfo(handle).total), _used(pynvml, handle))
            for number, handle in enumerate(handles)
        ]
    except pynvml.NVMLError:
        return []


def _used(pynvml: Any, handle: Any) -> Callable[[], float]:
    def used() -> float:
        try:
            return float(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        except pynvml.NVMLError:
            return float("nan")

    return used

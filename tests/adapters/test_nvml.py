"""GPU memory: what the library says, and nothing where there is no GPU."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from plaudit.adapters.runtime.nvml import gpus
from plaudit.compose.log import serving_log
from plaudit.compose.serving import inference_server
from plaudit.compose.settings import load_settings
from support.deployment import deployed


class Lost(Exception):
    """What the stand-in raises."""


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the library: GPU n has n + 1 GiB, of which n are in use, until ``lost`` is set."""
    library = SimpleNamespace(lost=False, NVMLError=Lost, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 2)

    def memory(number: int) -> SimpleNamespace:
        if library.lost:
            raise Lost
        return SimpleNamespace(total=(number + 1) * 2**30, used=number * 2**30)

    library.nvmlDeviceGetHandleByIndex = lambda number: number
    library.nvmlDeviceGetMemoryInfo = memory
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return library


def test_every_gpu_tells_its_memory_and_what_is_used(two_gpus: SimpleNamespace) -> None:
    assert [(gpu.name, gpu.memory_bytes, gpu.used_bytes()) for gpu in gpus()] == [
        ("0", 2**30, 0.0),
        ("1", 2**31, 2.0**30),
    ]


def test_a_gpu_that_is_lost_does_not_end_the_scrape(two_gpus: SimpleNamespace) -> None:
    found = gpus()
    two_gpus.lost = True
    assert [math.isnan(gpu.used_bytes()) for gpu in found] == [True, True]
    assert gpus() == []


def test_without_the_library_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus() == []


@pytest.mark.gpu
def test_a_real_gpu_uses_some_of_its_memory() -> None:
    found = gpus()
    if not found:
        pytest.skip("there is no NVIDIA GPU here")
    (first, *_) = found
    assert 0 <= first.used_bytes() <= first.memory_bytes


def test_the_service_shows_them(two_gpus: SimpleNamespace, tmp_path: Path) -> None:
    settings = load_settings(deployed(tmp_path))
    log = serving_log(settings)
    server = inference_server(settings, log)
    shown = server._metrics.registry.get_sample_value
    assert shown("plaudit_serving_gpu_memory_bytes", {"gpu": "1"}) == 2**31
    assert shown("plaudit_serving_gpu_memory_used_bytes", {"gpu": "1"}) == 2**30
    log.close()

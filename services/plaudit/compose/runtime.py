"""The model runtime, and the limits on content that serving and learner share."""

from __future__ import annotations

from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.compose.paths import data_dir
from plaudit.compose.settings import from_section
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.settings import Settings
from plaudit_models.limits import Limits


def model_runtime(settings: Settings) -> ModelRuntime:
    """Raises ConfigError: the GPU, or what is to be used of it, is not there."""
    serving = settings.serving
    engines = None
    if serving.tensorrt:
        engines = data_dir(settings) / "tensorrt"
        engines.mkdir(exist_ok=True)
    return OnnxRuntime(
        serving.device,
        serving.threads,
        gpu_mem_limit_bytes=serving.gpu_mem_limit_bytes,
        cuda_graphs=serving.cuda_graphs,
        tensorrt_dir=engines,
    )


def content_limits(settings: Settings) -> Limits:
    """Limits on content, the same for serving and learner: what was served can be learned from."""
    return from_section(Limits, settings.serving)

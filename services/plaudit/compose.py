"""The composition: settings → adapters → services. With ``cli`` and ``demo`` the only place that chooses adapters.

What needs an extra is imported where it is used, so that one service runs without the extras of the other.

Layout of the data directory:
    log.sqlite       event log
    registry/        versions and the rollout
    signing.key      what prediction ids are signed with
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from plaudit.adapters.directory_registry import DirectoryRegistry
from plaudit.adapters.sqlite_log import SqliteLog
from plaudit.core.errors import ConfigError
from plaudit.core.ports import EventLog, ModelRegistry, ModelRuntime
from plaudit.core.settings import Settings


def data_dir(settings: Settings) -> Path:
    """The data directory, made if it is not there.

    Raises:
        ConfigError: it cannot be made or written to.
    """
    path = settings.data_dir
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"data_dir: {path} is not a folder that can be written to ({error.strerror})") from error
    return path


def model_registry(settings: Settings) -> ModelRegistry:
    return DirectoryRegistry(data_dir(settings) / "registry", settings.spec().name)


def event_log(settings: Settings) -> EventLog:
    return SqliteLog(data_dir(settings) / "log.sqlite", settings.log.synchronous)


def model_runtime(settings: Settings) -> ModelRuntime:
    """Raises ConfigError: ``serving.device`` is not there."""
    from plaudit.adapters.onnx_runtime import OnnxRuntime

    return OnnxRuntime(settings.serving.device, settings.serving.threads)

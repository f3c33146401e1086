"""Paths in the data directory. Opens nothing.

Layout:
    log.sqlite            event log
    spool/                acknowledged events that Kafka does not have yet
    registry/             versions and the rollout
    experiences.sqlite    experience store of the learner; the one that leads has locked experiences.sqlite.lead
    learner/              status and process slots of the learner, and a folder per fine-tuning run
    experiences-NAME.sqlite, learner-NAME/   the same for an imported model
    signing.key           key that signs prediction ids
    signing.key.previous  the key before, whose prediction ids are accepted still
    keys.json             API keys, as digests, where there are any
    tensorrt/             engines that TensorRT has built, where it is used
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from plaudit.core.errors import ConfigError
from plaudit.core.settings import Settings


def data_dir(settings: Settings) -> Path:
    """The data directory, made if it is not there.

    Raises:
        ConfigError: it cannot be made or written to.
    """
    path = settings.data_dir.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"data_dir: {path} is not a folder that can be written to ({error.strerror})") from error
    return path


def store_file(settings: Settings, model: str) -> Path:
    """SQLite file of a model's experience store."""
    return data_dir(settings) / f"experiences{_suffix(settings, model)}.sqlite"


def learner_dir(settings: Settings, model: str) -> Path:
    """Folder of a model's learner, which the learner makes."""
    return data_dir(settings) / f"learner{_suffix(settings, model)}"


def _suffix(settings: Settings, model: str) -> str:
    """Suffix of the names of a model's files: "" for the model that the [model] table describes."""
    return "" if settings.model and settings.spec().name == model else f"-{model}"

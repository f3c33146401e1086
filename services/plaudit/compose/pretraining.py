"""Pre-training with what the settings say, into the registry of the model that they describe."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from plaudit.compose.registry import model_registry
from plaudit.core.settings import Settings
from plaudit.learner.finetuning.pretraining import Published, pretrain_and_publish
from plaudit_models.training.pretrain import PretrainProgress


def pretrain(settings: Settings, folder: Path, on_progress: Callable[[PretrainProgress], None]) -> Published:
    """Version trained on the labelled data in ``folder``.

    Raises:
        ConfigError: the [model] table is missing or wrong.
        InvalidData, ExportMismatch, FloatingPointError: as :func:`pretrain_and_publish`.
    """
    options = settings.pretrain
    return pretrain_and_publish(
        folder,
        settings.spec(),
        model_registry(settings),
        now_s=time.time(),
        floor=settings.policy.floor,
        max_duration_s=options.max_duration_s,
        max_epochs=options.max_epochs,
        batch=options.batch,
        learning_rate=options.learning_rate,
        patience=options.patience,
        threads=options.threads,
        seed=options.seed,
        on_progress=on_progress,
    )

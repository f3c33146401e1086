"""The body of ``plaudit pretrain``: a progress bar around the training. Imports torch; import it inside the command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from plaudit.cli import output
from plaudit.cli.failures import CommandFailed
from plaudit.compose.registry import model_registry
from plaudit.core.settings import Settings
from plaudit.learner.finetuning.pretraining import Published, pretrain_and_publish
from plaudit_models.dataset import InvalidData
from plaudit_models.training.export import ExportMismatch
from plaudit_models.training.pretrain import PretrainProgress


def pretrain(settings: Settings, folder: Path) -> Published:
    """Raises CommandFailed or ConfigError with a sentence for the user."""
    spec, registry, options = settings.spec(), model_registry(settings), settings.pretrain
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[measured]}"),
        console=output.err,
    )
    with bar:
        task = bar.add_task("reading", total=1.0, measured="", left="")
        validated = ""

        def show(progress: PretrainProgress) -> None:
            nonlocal validated
            if progress.validation_accuracy is not None:
                validated = f"  validation {progress.validation_accuracy:.1%}"
            measured = f"step {progress.step} of {progress.steps}  loss {progress.loss:.3f}{validated}"
            done = "exporting" if progress.fraction >= 1.0 else "training"
            left = f"about {progress.left_s:.0f} s left"
            bar.update(task, description=done, completed=progress.fraction, measured=measured, left=left)

        try:
            published = pretrain_and_publish(
                folder,
                spec,
                registry,
                now_s=time.time(),
                floor=settings.policy.floor,
                max_duration_s=options.max_duration_s,
                max_epochs=options.max_epochs,
                batch=options.batch,
                learning_rate=options.learning_rate,
                patience=options.patience,
                threads=options.threads,
                seed=options.seed,
                on_progress=show,
            )
        except (InvalidData, ExportMismatch, FloatingPointError) as error:
            raise CommandFailed(str(error)) from error
        bar.update(task, description="published", completed=1.0)
    return published


def summary(published: Published) -> dict[str, Any]:
    """What ``--json`` prints."""
    metrics = published.manifest.metrics
    return {
        "version": published.manifest.version,
        "digest": published.manifest.digest,
        "live": published.live,
        **{
            name: metrics[name]
            for name in ("split", "accuracy", "without", "steps", "duration_s", "stopped_early", "cut_short")
        },
    }


def show(published: Published) -> None:
    metrics = published.manifest.metrics
    output.out.print(
        f"version {published.manifest.version} is published{' and live' if published.live else ''}: "
        f"{published.accuracy.overall:.1%} right on split {metrics['split']} after {published.training.steps} steps"
    )
    if published.training.cut_short:
        output.out.print(
            f"  pretrain.max_duration_s ended it after {published.training.duration_s:.0f} s, before its steps were "
            "done: for a better model raise it, or lower pretrain.max_epochs"
        )
    for name, accuracy in published.accuracy.by_group.items():
        if name:
            output.out.print(f"  {name}: {accuracy:.1%}")
    for name, withheld in published.without.items():
        output.out.print(f"  without {name}: {withheld.overall:.1%}")

"""``plaudit pretrain``: a progress bar around the training. Imports torch; to be imported inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from plaudit.cli import output
from plaudit.cli.failures import CommandFailed
from plaudit.compose import pretraining
from plaudit.core.settings import Settings
from plaudit.learner.finetuning.pretraining import Published
from plaudit_models.data.errors import InvalidData
from plaudit_models.training.encoders.config import UnusableEncoder
from plaudit_models.training.export import ExportMismatch
from plaudit_models.training.pretrain import PretrainProgress


def pretrain(settings: Settings, folder: Path) -> Published:
    """Train and publish. Raises CommandFailed or ConfigError with a sentence for the user."""
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
            published = pretraining.pretrain(settings, folder, show)
        except (InvalidData, UnusableEncoder, ExportMismatch, FloatingPointError) as error:
            raise CommandFailed(str(error)) from error
        bar.update(task, description="published", completed=1.0)
    return published


def summary(published: Published) -> dict[str, Any]:
    """Result as JSON."""
    manifest = published.manifest
    measured = ("split", "accuracy", "without", "steps", "duration_s", "stopped_early", "cut_short")
    result = {"version": manifest.version, "digest": manifest.digest, "live": published.live}
    return result | {name: manifest.metrics[name] for name in measured}


def show(published: Published) -> None:
    """Print the result as text."""
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

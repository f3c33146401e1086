"""``plaudit finetune``: a progress bar around one fine-tuning job, which runs in another process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any, Final

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from plaudit.cli import output
from plaudit.cli.failures import CommandFailed
from plaudit.cli.processes.stopping import requests_as_exit
from plaudit.compose.learner import job_launcher, training_plan
from plaudit.compose.paths import learner_dir
from plaudit.compose.registry import model_registry
from plaudit.compose.store import experience_store
from plaudit.core.settings import Settings
from plaudit.learner.finetuning.manual import FinetuningFailed, finetune_manually
from plaudit_models.bundle import Manifest

_POLL_INTERVAL_S: Final = 0.2


def finetune(settings: Settings, model: str, reason: str) -> Manifest:
    """Run one job and publish its version. Raises CommandFailed, or another error with a sentence for the user."""
    started_s = time.time()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[measured]}"),
        console=output.err,
    )
    with bar, requests_as_exit(), contextlib.closing(experience_store(settings, model)) as store:
        task = bar.add_task("fine-tuning", total=1.0, measured="")

        def show(progress: Mapping[str, Any]) -> None:
            if progress:
                measured = f"user loss {progress['user_loss']:.3f}  rehearsal loss {progress['rehearsal_loss']:.3f}"
                bar.update(task, completed=progress["fraction"], measured=measured)

        try:
            manifest = finetune_manually(
                learner_dir(settings, model) / "runs" / f"by-hand-{started_s:.0f}",
                jobs=job_launcher(settings, model),
                store=store,
                registry=model_registry(settings, model),
                plan=training_plan(settings),
                now_s=started_s,
                reason=reason or "by hand",
                wait=lambda: time.sleep(_POLL_INTERVAL_S),
                on_progress=show,
            )
        except FinetuningFailed as error:
            raise CommandFailed(str(error)) from error
        bar.update(task, description="published", completed=1.0)
    return manifest

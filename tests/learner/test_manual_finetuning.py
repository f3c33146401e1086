"""A fine-tuning job by hand, with a tiny candidate in place of the training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.adapters.store.engine import sqlite_url
from plaudit.adapters.store.sql import SqlStore
from plaudit.compose.learner import training_plan
from plaudit.core.errors import NoLiveModel
from plaudit.core.job_run import CANDIDATE, PROGRESS, RESULT, write_json
from plaudit.core.ports.store import LeaderCommit
from plaudit.core.rollout import Change, promote
from plaudit.core.settings import Settings
from plaudit.learner.finetuning.job_spec import PARENT, read_job_spec
from plaudit.learner.finetuning.manual import FinetuningFailed, finetune_manually
from plaudit.learner.progress import Progress
from plaudit_models.bundle import Manifest, read_manifest
from plaudit_models.spec import OutputSpec
from support import builders
from support.inline_jobs import InlineJobs


class World:
    """A registry whose version 1 says what it was pre-trained on, and a store with five experiences."""

    def __init__(self, folder: Path, *, live: bool = True) -> None:
        self.run_dir = folder / "runs/by-hand"
        self.registry = DirectoryRegistry(folder / "registry", builders.tiny_spec().name)
        builders.tiny_bundle(folder / "made", data={"folder": "/labelled"})
        self.registry.publish(folder / "made")
        if live:
            self.registry.set_rollout(promote(self.registry.rollout(), 1, Change("ada", 1.0, "")))
        self.url = sqlite_url(folder / "experiences.sqlite").render_as_string()
        self.store = SqlStore(self.url)
        self.store.lead()
        self.store.save(LeaderCommit(state={"progress": Progress(last_number=5, experiences=5).to_bytes()}))

    def finetune(self, jobs: InlineJobs) -> Manifest:
        settings = Settings()
        return finetune_manually(
            self.run_dir,
            jobs=jobs,
            store=self.store,
            registry=self.registry,
            plan=training_plan(settings),
            now_s=2.0,
            reason="before the audit",
            wait=lambda: pytest.fail("an inline job is never running"),
        )


def _imported(folder: Path) -> World:
    """A world whose live version 2 is an imported graph."""
    world = World(folder)
    spec = replace(builders.tiny_spec(), outputs={"logits": OutputSpec("float32", (4,))})
    builders.tiny_bundle(folder / "imported", spec=spec, kind="imported")
    world.registry.publish(folder / "imported")
    world.registry.set_rollout(promote(world.registry.rollout(), 2, Change("ada", 1.0, "")))
    return world


def _train(run_dir: Path) -> None:
    builders.tiny_bundle(run_dir / CANDIDATE, seed=1, kind="finetuned", parent=1)
    (run_dir / PROGRESS).write_text("{}\n")
    write_json(run_dir / RESULT, {})


def _diverge(run_dir: Path) -> None:
    raise FloatingPointError("the loss is nan")


def test_the_candidate_is_published_and_waits_to_be_promoted(tmp_path: Path) -> None:
    world = World(tmp_path)
    published = world.finetune(InlineJobs(_train))
    assert (published.version, published.kind) == (2, "finetuned")
    assert list(world.registry.versions()) == [1, 2]
    assert world.registry.rollout().live == 1


def test_an_imported_graph_cannot_be_trained(tmp_path: Path) -> None:
    world = _imported(tmp_path)
    with pytest.raises(FinetuningFailed, match="version 2 is an imported graph without weights"):
        world.finetune(InlineJobs(_train))
    assert list(world.registry.versions()) == [1, 2]


def test_the_job_starts_from_live_sees_all_experiences_and_rehearses_the_pre_training(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.finetune(InlineJobs(_train))
    task = read_job_spec(world.run_dir)
    assert (task.snapshot, task.created_at_s, task.reason) == (5, 2.0, "before the audit")
    assert task.plan.rehearsal == "/labelled"
    assert read_manifest(world.run_dir / PARENT).version == 1


def test_a_job_that_fails_publishes_nothing_and_says_why(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(FinetuningFailed, match="the loss is nan"):
        world.finetune(InlineJobs(_diverge))
    assert list(world.registry.versions()) == [1]


def test_without_a_live_version_there_is_nothing_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(NoLiveModel):
        World(tmp_path, live=False).finetune(InlineJobs(_train))

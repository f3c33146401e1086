"""A whole loop in one process for tests: log, registry, runtime, learner, and a stand-in for the inference service.

The stand-in answers with the same functions as the service: live version, probabilities, a draw, a logged decision.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from prometheus_client import CollectorRegistry

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.adapters.store.engine import sqlite_url
from plaudit.adapters.store.sql import LEASE_S, SqlStore
from plaudit.compose.learner import build_learner
from plaudit.compose.settings import settings_from
from plaudit.core.events import Content, Decision, Features, Feedback, Role, Signal, Thumb
from plaudit.core.job_run import CANDIDATE, RESULT, write_json
from plaudit.core.ports.jobs import JobLauncher
from plaudit.core.ports.log import EventLog
from plaudit.core.ports.runtime import ServableModel
from plaudit.core.rollout import Change, in_experiment, promote
from plaudit.core.tracing import Tracing
from plaudit.learner.finetuning.job_spec import PARENT, STATE, read_job_spec
from plaudit.learner.loop import Learner
from plaudit.learner.metrics import LearnerMetrics
from plaudit_models.bandit.dynamic_actions import DynamicActionState
from plaudit_models.bandit.policy import Float64, probabilities
from plaudit_models.bandit.reward_model import RewardState, empty_state
from plaudit_models.bundle import read_manifest
from support.builders import NOW_S, tiny_bundle, tiny_content, tiny_spec, trunk_inputs
from support.inline_jobs import InlineJobs

SPEC: Final = tiny_spec()
USERS: Final = 1_000
"""Number of users: enough that the cap on a user's share of the evidence excludes none."""


@dataclass
class World:
    """One model with everything around it, in one folder.

    Attributes:
        settings: sections by name, laid over the defaults.
        run_job: stands in for a fine-tuning job.
        log: another one than the embedded one.
        store_url: of another store than the embedded one.
        lease_s: of the learners' stores.
        tracing: of the learners; None: they are not traced.
    """

    folder: Path
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    run_job: Callable[[Path], None] = lambda run_dir: None
    jobs: JobLauncher | None = None
    now_s: float = NOW_S
    log: EventLog = None  # type: ignore[assignment]  # made below
    store_url: str = ""
    lease_s: float = LEASE_S
    tracing: Tracing | None = None

    def __post_init__(self) -> None:
        self.log = self.log or SqliteLog(self.folder / "log.sqlite", "NORMAL")
        self.registry = DirectoryRegistry(self.folder / "registry", SPEC.name)
        self.runtime = OnnxRuntime("cpu")
        self.store_url = self.store_url or sqlite_url(self.folder / "learner.db").render_as_string()
        self.store = SqlStore(self.store_url)
        self.rng = np.random.default_rng(0)
        self.numbers = itertools.count()
        self.stores = [self.store]
        self.loaded: dict[int, ServableModel] = {}
        self.metrics = CollectorRegistry()

    def first_version(self, **fields: Any) -> int:
        """Publish a tiny version and make it live."""
        return self.promote(self.publish(**fields))

    def publish(self, **fields: Any) -> int:
        folder = self.folder / f"made-{next(self.numbers)}"
        tiny_bundle(folder, **fields)
        return self.registry.publish(folder).version

    def promote(self, version: int) -> int:
        change = Change("a test", self.now_s, "a test wants it")
        self.registry.set_rollout(promote(self.registry.rollout(), version, change))
        return version

    def learner(self, log: EventLog | None = None) -> Learner:
        """A learner as after a start of its process: with a store of its own on the same data, and what it saved.

        Another one on SQLite has ended before: its process no longer has the lock of the leader.
        """
        for store in self.stores:
            if store.exclusive:
                store.resign()
        self.store = SqlStore(self.store_url, lease_s=self.lease_s)
        self.stores.append(self.store)
        self.metrics = CollectorRegistry()
        learner = build_learner(
            settings_from(self.settings),
            log=log or self.log,
            store=self.store,
            registry=self.registry,
            runtime=self.runtime,
            jobs=self.jobs or InlineJobs(self.run_job),
            work_dir=self.folder / "work",
            metrics=LearnerMetrics(self.metrics),
            tracing=self.tracing,
            clock=lambda: self.now_s,
        )
        learner._load()
        return learner

    def metric(self, name: str, **labels: str) -> float | None:
        """Metric of the latest learner, as a scrape would show it; None if it is not there."""
        return self.metrics.get_sample_value(name, labels)

    def close(self) -> None:
        self.log.close()
        for store in self.stores:
            store.close()

    # --- the stand-in for the inference service ----------------------------------------------------------------------

    def policy(self, version: int, content: Mapping[str, Content]) -> tuple[Float64, Features]:
        """Probabilities ``[a]`` of a version on a content, and its features."""
        folder = self.registry.folder(version)
        if version not in self.loaded:
            self.loaded[version] = self.runtime.load(folder)
        model = self.loaded[version]
        embedding, base_logits, _ = model.trunk(trunk_inputs(folder, [content]))
        allowed = np.ones((1, len(SPEC.actions)), np.bool_)
        probs = probabilities(model.head(embedding, base_logits), allowed, model.manifest.floor)
        return probs[0], Features(model.manifest.trunk_digest, embedding[0], base_logits[0])

    def decide(self, seed: int = 0, **fields: Any) -> Decision:
        """A decision of the version that serves its user on the content of that seed, not logged yet."""
        content = tiny_content(seed)
        rollout = self.registry.rollout()
        version, role = rollout.live, Role.LIVE
        if rollout.candidate is not None:
            fields.setdefault("user_id", f"user {self.rng.integers(USERS)}")
            if in_experiment(rollout, fields["user_id"]):
                version, role = rollout.candidate, Role.CANDIDATE
        assert version is not None
        probs, features = self.policy(version, content)
        defaults = {"features": features, "content": content, "role": role}
        return self.draw(version, SPEC.actions, probs, **(defaults | fields))

    def draw(self, version: int, actions: Sequence[str], probs: Float64, **fields: Any) -> Decision:
        """A decision for one of the actions, drawn with the probabilities ``[k]``."""
        action = int(self.rng.choice(len(probs), p=probs))
        self.now_s += 0.001
        defaults: dict[str, Any] = {
            "prediction_id": f"p{next(self.numbers)}",
            "model": SPEC.name,
            "time_s": self.now_s,
            "user_id": f"user {self.rng.integers(USERS)}",
            "version": version,
            "version_digest": self.registry.manifest(version).digest,
            "role": Role.LIVE,
            "action": actions[action],
            "propensity": float(probs[action]),
        }
        return Decision(**(defaults | fields))

    def say(self, decision: Decision, signal: Signal, **fields: Any) -> Feedback:
        """Feedback of the decision's user, not logged yet."""
        self.now_s += 0.001
        defaults: dict[str, Any] = {
            "feedback_id": f"f{next(self.numbers)}",
            "prediction_id": decision.prediction_id,
            "time_s": self.now_s,
            "user_id": decision.user_id,
            "signal": signal,
        }
        return Feedback(**(defaults | fields))

    def elapse(self, seconds: float) -> None:
        """Let time go by, in the log too: it has a decision for every hour of the last day of that time."""
        self.now_s += seconds
        last = self.decide(time_s=self.now_s)
        hours = range(25, 0, -1)
        earlier = [
            replace(last, prediction_id=f"{last.prediction_id}-{h}", time_s=self.now_s - 3_600 * h) for h in hours
        ]
        self.log.append([*earlier, last])

    def thumb(self, up: bool) -> Thumb:
        return Thumb(up=up)

    def traffic(self, n: int, likes: Callable[[Decision], bool]) -> list[Decision]:
        """Log n decisions, each with a thumb that says whether its user likes it."""
        decisions = [self.decide(seed=int(self.rng.integers(20))) for _ in range(n)]
        events: list[Decision | Feedback] = []
        for decision in decisions:
            events += [decision, self.say(decision, Thumb(up=likes(decision)))]
        self.log.append(events)
        return decisions

    def satisfaction(self, version: int, likes_action: str) -> float:
        """Mean probability of the action that users like, over the contents of the traffic."""
        index = SPEC.action_index(likes_action)
        return float(np.mean([self.policy(version, tiny_content(seed))[0][index] for seed in range(20)]))

    # --- expectations ----------------------------------------------------------------------------------------------

    def settle(self, learner: Learner) -> None:
        """Step until there is nothing left to read."""
        while learner.step():
            pass


def candidate_that_prefers(action: str | None, *, kl_nats: float | None = None) -> Callable[[Path], None]:
    """What a job leaves behind that made a candidate of another trunk which answers ``action``, and says that it moved
    the policy by ``kl_nats``."""

    def run(run_dir: Path) -> None:
        task = read_job_spec(run_dir)
        parent = read_manifest(run_dir / PARENT)
        made = tiny_bundle(
            run_dir / CANDIDATE,
            seed=9,
            kind="finetuned",
            parent=parent.version,
            prefer=action,
            data=task.data,
            metrics={} if kl_nats is None else {"kl_to_parent_nats": kl_nats},
        )
        (run_dir / STATE).write_bytes(empty_state(task.plan.head_builder.space(made)).to_bytes())
        write_json(run_dir / RESULT, {})

    return run


def assert_same_sums(state: RewardState | None, expected: RewardState) -> None:
    assert state is not None
    assert state.space == expected.space
    np.testing.assert_allclose(state.gram, expected.gram, atol=1e-9)
    np.testing.assert_allclose(state.target, expected.target, atol=1e-9)
    np.testing.assert_allclose(state.weight, expected.weight, atol=1e-9)


def reward_state(learner: Learner) -> RewardState:
    """Evidence about fixed actions."""
    assert learner.state.fixed_actions is not None
    return learner.state.fixed_actions.state


def dynamic_state(learner: Learner) -> DynamicActionState:
    """Evidence about dynamic actions."""
    assert learner.state.dynamic_actions is not None
    return learner.state.dynamic_actions.state

"""The world of loop_world.py with a model that scores text, and requests that list dynamic actions of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.core.events import Decision, DynamicAction, Features, Feedback, Thumb
from plaudit.core.job_run import CANDIDATE, RESULT, write_json
from plaudit.core.ports.runtime import ServableModel
from plaudit.learner.features.content import decode_contents
from plaudit.learner.finetuning.job_spec import STATE, read_job_spec
from plaudit_models.bandit.dynamic_actions import (
    ActionList,
    DynamicActionEvidence,
    DynamicActionHead,
    DynamicActionSpace,
    empty_dynamic_action_state,
    evidence_of_list,
    served_over,
)
from plaudit_models.bandit.policy import Float64
from plaudit_models.bandit.reward_model import empty_state
from plaudit_models.bundle import DYNAMIC_HEAD, Manifest, seal
from plaudit_models.limits import Limits
from plaudit_models.preprocess import assemble
from support.builders import tiny_bundle, tiny_content, tiny_spec
from support.loop_world import World

SPEC: Final = tiny_spec(scores_text=True)
WORDS: Final = ("loud", "small", "here", "there", "animal", "which", "is", "it")
CONTENTS: Final = 20


def some_dynamic_actions(rng: np.random.Generator, k: int) -> tuple[DynamicAction, ...]:
    """Dynamic actions of two to four words each, hardly any of which repeats."""
    return tuple(DynamicAction(f"c{i}", " ".join(rng.choice(WORDS, rng.integers(2, 5)))) for i in range(k))


class DynamicActionWorld(World):
    """World whose versions score text by default."""

    def publish(self, **fields: Any) -> int:
        return super().publish(**({"spec": SPEC} | fields))

    def over(self, version: int, dynamic_actions: Sequence[DynamicAction], seed: int) -> tuple[Float64, Features]:
        """Probabilities ``[k]`` of a version over dynamic actions, and the features of the decision."""
        if version not in self.loaded:
            self.loaded[version] = self.runtime.load(self.registry.folder(version))
        model = self.loaded[version]
        probs, listed = scored(model, dynamic_actions, seed)
        return probs, Features(model.manifest.trunk_digest, listed.embedding, listed.base_logits)

    def decide_between(self, dynamic_actions: Sequence[DynamicAction], seed: int = 0, **fields: Any) -> Decision:
        """A decision of the live version between dynamic actions, not logged yet."""
        version = self.registry.rollout().live
        assert version is not None
        probs, features = self.over(version, dynamic_actions, seed)
        listed = {"features": features, "content": tiny_content(seed), "dynamic_actions": tuple(dynamic_actions)}
        return self.draw(version, [each.id for each in dynamic_actions], probs, **(listed | fields))

    def traffic_between(self, n: int, likes: Callable[[int, str], bool], k: int = 8) -> list[tuple[Decision, Feedback]]:
        """Log n decisions between fresh dynamic actions, each with a thumb: ``likes`` a text with the content of a
        seed.
        """
        said = []
        for _ in range(n):
            seed = int(self.rng.integers(CONTENTS))
            decision = self.decide_between(some_dynamic_actions(self.rng, k), seed)
            up = likes(seed, picked_text(decision))
            said.append((decision, self.say(decision, Thumb(up=up))))
        self.log.append([event for pair in said for event in pair])
        return said

    def satisfaction_between(self, version: int, likes: Callable[[int, str], bool], rng_seed: int = 99) -> float:
        """Mean probability that a version's answer is liked, over dynamic actions that were never listed before."""
        rng = np.random.default_rng(rng_seed)
        liked = []
        for seed in range(CONTENTS):
            dynamic_actions = some_dynamic_actions(rng, 8)
            probs, _ = self.over(version, dynamic_actions, seed)
            liked.append(probs @ np.array([likes(seed, each.text) for each in dynamic_actions], np.float64))
        return float(np.mean(liked))


def picked_text(decision: Decision) -> str:
    return next(each.text for each in decision.dynamic_actions if each.id == decision.action)


def scored(model: ServableModel, actions: Sequence[DynamicAction], seed: int) -> tuple[Float64, ActionList]:
    """Probabilities ``[k]`` of a version over dynamic actions with the content of a seed, and what it scores."""
    content = [decode_contents(model.manifest.spec, model.tokenizer, tiny_content(seed), Limits()) or {}]
    embedding = model.trunk(assemble(model.manifest.spec, content)).embedding[0]
    vectors = model.action_vectors([action.text for action in actions])
    listed = ActionList(embedding, vectors, vectors @ embedding)
    return served_over(model.dynamic_scores(embedding, vectors, vectors @ embedding), model.manifest.floor), listed


def finetuned_candidate(folder: Path, **fields: Any) -> Manifest:
    """A version of another trunk."""
    defaults: dict[str, Any] = {"spec": SPEC, "seed": 9, "kind": "finetuned"}
    return tiny_bundle(folder, **(defaults | fields))


def candidate_about_lists(likes: Callable[[str], bool] | None, *, prefer: str | None = None) -> Callable[[Path], None]:
    """What a job leaves behind that made a candidate of another trunk, which has heard of many lists of dynamic actions
    which texts users like (None: of no list), and answers ``prefer`` where it is asked for one of the model's actions.
    """

    def run(run_dir: Path) -> None:
        task, folder = read_job_spec(run_dir), run_dir / CANDIDATE
        builder = task.plan.head_builder
        made = finetuned_candidate(folder, parent=1, data=task.data, prefer=prefer, floor=builder.floor)
        (run_dir / STATE).write_bytes(empty_state(builder.space(made)).to_bytes())
        if likes is not None:
            space = builder.dynamic_space(made)
            assert space is not None
            state = empty_dynamic_action_state(space).add(_evidence(OnnxRuntime("cpu").load(folder), space, likes))
            (folder / DYNAMIC_HEAD).write_bytes(DynamicActionHead(builder.settings, state).to_bytes())
            seal(folder, made)
        write_json(run_dir / RESULT, {})

    return run


def _evidence(
    model: ServableModel, space: DynamicActionSpace, likes: Callable[[str], bool]
) -> Iterator[DynamicActionEvidence]:
    """Corrections of 200 lists, as it were: of each text it is said whether users like it."""
    rng = np.random.default_rng(1)
    for seed in range(200):
        actions = some_dynamic_actions(rng, 4)
        rewards = np.array([likes(action.text) for action in actions], np.float64)
        _, listed = scored(model, actions, seed % CONTENTS)
        yield evidence_of_list(space, listed, rewards, np.ones(len(actions), np.bool_))

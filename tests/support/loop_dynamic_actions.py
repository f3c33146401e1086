"""The world of loop_world.py with a model that scores text, and requests that list dynamic actions of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from plaudit.core.events import Decision, DynamicAction, Features, Feedback, Thumb
from plaudit_models.bandit.policy import Float64, probabilities
from plaudit_models.bundle import Manifest
from support.builders import tiny_bundle, tiny_content, tiny_spec, trunk_inputs
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
        folder, content = self.registry.folder(version), tiny_content(seed)
        if version not in self.loaded:
            self.loaded[version] = self.runtime.load(folder)
        model = self.loaded[version]
        embedding = model.trunk(trunk_inputs(folder, [content])).embedding[0]
        vectors = model.action_vectors([candidate.text for candidate in dynamic_actions])
        base_logits = vectors @ embedding
        scores = model.dynamic_scores(embedding, vectors, base_logits)[None]
        probs = probabilities(scores, np.ones(scores.shape, np.bool_), model.manifest.floor)[0]
        return probs, Features(model.manifest.trunk_digest, embedding, base_logits)

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


def finetuned_candidate(folder: Path, **fields: Any) -> Manifest:
    """A version of another trunk."""
    defaults: dict[str, Any] = {"spec": SPEC, "seed": 9, "kind": "finetuned"}
    return tiny_bundle(folder, **(defaults | fields))

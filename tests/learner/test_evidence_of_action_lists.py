"""What is said of dynamic actions goes into their sums, what is said of actions into theirs; exactly, and back
again.
"""

from __future__ import annotations

import numpy as np

from plaudit.core.events import Features
from plaudit.core.experience import Label
from plaudit.learner.features.evidence import Learned, Listed, Said
from plaudit_models.bandit.dynamic_actions import (
    ActionList,
    DynamicActionSpace,
    empty_dynamic_action_state,
    evidence_of_list,
)
from plaudit_models.bandit.features import FeatureSpace
from plaudit_models.bandit.reward_model import empty_state

INDEX = {"cat": 0, "dog": 1}
SPACE = FeatureSpace("trunk", n_actions=2, embedding_size=3)
CANDIDATE_SPACE = DynamicActionSpace("trunk", "graph", embedding_size=3, pair_features=4)
SEEN = ActionList(np.ones(3), np.arange(9.0).reshape(3, 3), np.array([0.0, 1.0, -1.0]))


def of_actions(reward: float) -> Said:
    row = Features("trunk", np.ones(3, np.float32), np.zeros(2, np.float32))
    return Said(row, Label({"cat": reward}, 1.0))


def dynamic(rewards: dict[str, float], weight: float = 1.0) -> Said:
    """One candidate is called what an action is."""
    row = Features("trunk", SEEN.embedding.astype(np.float32), SEEN.base_logits.astype(np.float32))
    return Said(row, Label(rewards, weight), Listed(["x", "cat", "y"], SEEN))


def nothing() -> Learned:
    return Learned(empty_state(SPACE), empty_dynamic_action_state(CANDIDATE_SPACE))


def test_each_goes_where_it_belongs() -> None:
    learned = nothing().add([of_actions(1.0), dynamic({"cat": 0.5}, weight=0.25)], INDEX)
    assert learned.reward.weight.tolist() == [1.0, 0.0]
    expected = empty_dynamic_action_state(CANDIDATE_SPACE).add(
        [evidence_of_list(CANDIDATE_SPACE, SEEN, np.array([0.0, 0.5, 0.0]), np.array([False, True, False]), 0.25)]
    )
    assert learned.dynamic_actions is not None
    np.testing.assert_array_equal(learned.dynamic_actions.gram, expected.gram)
    np.testing.assert_array_equal(learned.dynamic_actions.target, expected.target)


def test_what_is_subtracted_leaves_no_trace() -> None:
    said = [of_actions(1.0), dynamic({"x": 1.0}), dynamic({"x": 0.0, "cat": 1.0, "y": 0.0})]
    learned = nothing().add(said, INDEX).subtract(said, INDEX)
    assert learned.dynamic_actions is not None
    for sums in (
        learned.reward.gram,
        learned.reward.target,
        learned.dynamic_actions.gram,
        learned.dynamic_actions.target,
    ):
        np.testing.assert_allclose(sums, 0.0, atol=1e-12)


def test_nothing_is_learned_of_dynamic_actions_that_cannot_be_scored() -> None:
    without = Learned(empty_state(SPACE), None)
    learned = without.add([dynamic({"cat": 1.0})], INDEX).subtract([dynamic({"x": 1.0})], INDEX)
    assert learned.dynamic_actions is None
    assert learned.reward is without.reward

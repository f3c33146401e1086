"""Labels of dynamic actions go into their sums, labels of fixed actions into theirs; exactly, and back again."""

from __future__ import annotations

import numpy as np

from plaudit.core.events import Features
from plaudit.core.experience import Label
from plaudit.learner.features.action_heads import DynamicActions, FixedActions, Learned
from plaudit.learner.features.context import Context, LabelledContext
from plaudit_models.bandit.dynamic_actions import (
    ActionList,
    DynamicActionSpace,
    empty_dynamic_action_state,
    evidence_of_list,
)
from plaudit_models.bandit.features import FeatureSpace
from plaudit_models.bandit.reward_model import empty_state

SPACE = FeatureSpace("trunk", n_actions=2, embedding_size=3)
DYNAMIC_SPACE = DynamicActionSpace("trunk", "graph", embedding_size=3, pair_features=4)
SEEN = ActionList(np.ones(3), np.arange(9.0).reshape(3, 3), np.array([0.0, 1.0, -1.0]))


def fixed(reward: float) -> LabelledContext:
    row = Features("trunk", np.ones(3, np.float32), np.zeros(2, np.float32))
    return LabelledContext(Context(row, ("cat", "dog")), Label({"cat": reward}, 1.0))


def dynamic(rewards: dict[str, float], weight: float = 1.0) -> LabelledContext:
    """One dynamic action has the id of a fixed one."""
    row = Features("trunk", SEEN.embedding.astype(np.float32), SEEN.base_logits.astype(np.float32))
    context = Context(row, ["x", "cat", "y"], vectors=SEEN.vectors.astype(np.float32))
    return LabelledContext(context, Label(rewards, weight))


def nothing() -> Learned:
    return Learned((FixedActions(empty_state(SPACE)), DynamicActions(empty_dynamic_action_state(DYNAMIC_SPACE))))


def test_each_goes_where_it_belongs() -> None:
    learned = nothing().add([fixed(1.0), dynamic({"cat": 0.5}, weight=0.25)])
    assert learned.require(FixedActions).state.weight.tolist() == [1.0, 0.0]
    expected = empty_dynamic_action_state(DYNAMIC_SPACE).add(
        [evidence_of_list(DYNAMIC_SPACE, SEEN, np.array([0.0, 0.5, 0.0]), np.array([False, True, False]), 0.25)]
    )
    state = learned.require(DynamicActions).state
    np.testing.assert_array_equal(state.gram, expected.gram)
    np.testing.assert_array_equal(state.target, expected.target)


def test_what_is_subtracted_leaves_no_trace() -> None:
    said = [fixed(1.0), dynamic({"x": 1.0}), dynamic({"x": 0.0, "cat": 1.0, "y": 0.0})]
    learned = nothing().add(said).subtract(said)
    of_fixed, of_dynamic = learned.require(FixedActions).state, learned.require(DynamicActions).state
    for sums in (of_fixed.gram, of_fixed.target, of_dynamic.gram, of_dynamic.target):
        np.testing.assert_allclose(sums, 0.0, atol=1e-12)


def test_nothing_is_learned_of_dynamic_actions_that_cannot_be_scored() -> None:
    without = Learned((FixedActions(empty_state(SPACE)),))
    learned = without.add([dynamic({"cat": 1.0})]).subtract([dynamic({"x": 1.0})])
    assert learned.head(DynamicActions) is None
    assert learned.require(FixedActions).state is without.require(FixedActions).state

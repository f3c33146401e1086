"""Labels as arrays: what they say, and what is left out."""

from __future__ import annotations

import numpy as np

from plaudit.core.events import Features
from plaudit.core.experience import Label
from plaudit.learner.features.action_heads import evidence_of
from plaudit.learner.features.context import Context, LabelledContext
from plaudit_models.bandit.features import FeatureSpace
from plaudit_models.bandit.reward_model import empty_state

SPACE = FeatureSpace("trunk", n_actions=2, embedding_size=1, exclusivity=0.1)
CONTEXT = Context(Features("trunk", np.zeros(1, np.float32), np.zeros(2, np.float32)), ("cat", "dog"))


def test_a_label_covers_the_actions_it_names() -> None:
    evidence = evidence_of(SPACE, [LabelledContext(CONTEXT, Label({"dog": 0.75}, 0.5))])
    np.testing.assert_array_equal(evidence.known_mask, [[False, True]])
    np.testing.assert_array_equal(evidence.rewards, [[0.0, 0.75]])
    np.testing.assert_allclose(evidence.action_weights(), [[0.5 * 0.1 * 0.75, 0.5]])


def test_an_action_that_left_the_action_set_teaches_nothing() -> None:
    evidence = evidence_of(SPACE, [LabelledContext(CONTEXT, Label({"cow": 1.0}, 1.0))])
    state = empty_state(SPACE).add(evidence)
    assert not state.gram.any()
    assert not state.target.any()


def test_no_labels_teach_nothing() -> None:
    state = empty_state(SPACE).add(evidence_of(SPACE, []))
    assert not state.gram.any()

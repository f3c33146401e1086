"""What users said as terms of a likelihood, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from plaudit_models.training.data.feedback_targets import build_feedback_targets


def test_a_thumb_covers_one_action_and_by_praise_the_others() -> None:
    """Trust ½, ρ = 0.1: up on action 1 says 1 of it with weight ½, and 0 of the others with ½·0.1·1 = 0.05."""
    made = build_feedback_targets([{1: 1.0}, {1: 0.0}], [0.5, 1.0], 3, exclusivity=0.1)
    np.testing.assert_allclose(made.reward, [[0, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(made.weight, [[0.05, 0.5, 0.05], [0.0, 1.0, 0.0]])
    assert made.spoken_mask.tolist() == [[False, True, False], [False, True, False]]
    assert made.preferred.tolist() == [-1, -1]


def test_a_correction_covers_all_actions() -> None:
    made = build_feedback_targets([{0: 0.0, 1: 0.0, 2: 1.0}], [1.0], 3, exclusivity=0.1)
    assert made.reward.tolist() == [[0, 0, 1]]
    assert made.weight.tolist() == [[1, 1, 1]]


def test_a_preference_covers_its_pair_alone() -> None:
    made = build_feedback_targets([{2: 0.25, 0: 0.75}], [1.0], 3, exclusivity=0.1)
    assert (made.preferred[0], made.rejected[0], made.share[0]) == (0, 2, 1.0)
    assert not made.weight.any()


def test_preferences_of_several_users_are_a_share_of_them() -> None:
    """Three prefer action 1, one action 0: means (3·¾ + ¼)/4 = 0.625 and 0.375, so a share of ¾ prefers action 1."""
    made = build_feedback_targets([{0: 0.375, 1: 0.625}], [1.0], 3, exclusivity=0.1)
    assert (made.preferred[0], made.rejected[0]) == (1, 0)
    assert made.share[0] == pytest.approx(0.75)


def test_a_correction_between_two_actions_is_no_preference() -> None:
    made = build_feedback_targets([{0: 1.0, 1: 0.0}], [1.0], 2, exclusivity=0.1)
    assert made.preferred[0] == -1
    assert made.weight.tolist() == [[1, 1]]


def test_a_preference_and_a_thumb_about_it_stand_for_themselves() -> None:
    """One user prefers 0 to 1, another has a thumb up for 0: (¾ + 1)/2 = 0.875 and 0.25 do not sum to 1."""
    made = build_feedback_targets([{0: 0.875, 1: 0.25}], [1.0], 3, exclusivity=0.1)
    assert made.preferred[0] == -1
    np.testing.assert_allclose(made.reward, [[0.875, 0.25, 0]])


def test_rewards_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards_by_action: 1.5 of action 2 in experience 1 is not in \[0, 1\]"):
        build_feedback_targets([{0: 1.0}, {2: 1.5}], [1.0, 1.0], 3, exclusivity=0.1)

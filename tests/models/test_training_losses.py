"""The training losses against numbers worked by hand. Logits are logs of probabilities, so softmax gives those back."""

from __future__ import annotations

import math

import pytest
import torch

from plaudit_models.training.losses import (
    action_nll,
    kl_to_reference,
    opinion_information,
    opinion_nll,
    preference_nll,
    ranking_nll,
    reward_nll,
    shares_nll,
)

LOGITS = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))


def test_action_nll_is_minus_the_log_probability_of_the_right_action() -> None:
    """Row 0: −log 0.25 = 1.386294. Row 1: −log 0.8 = 0.223144."""
    loss = action_nll(LOGITS, torch.tensor([2, 1]))
    assert loss.tolist() == pytest.approx([1.386294, 0.223144], abs=1e-5)


def test_shares_nll_weighs_every_right_action() -> None:
    """Row 0: −0.5·log 0.5 − 0.5·log 0.25 = 1.039721. Row 1: all on one action, as action_nll: 0.223144."""
    loss = shares_nll(LOGITS, torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]))
    assert loss.tolist() == pytest.approx([1.039721, 0.223144], abs=1e-5)


def test_ranking_nll_is_a_choice_among_those_left_at_every_place() -> None:
    """Row 0: 1 of all has 0.25, then 0 of {0, 2} has 0.5/0.75: −(log 0.25 + log 2/3)/2 = 0.895880.
    Row 1 ranks one action: 0.223144."""
    loss = ranking_nll(LOGITS, torch.tensor([[1, 0, -1], [1, -1, -1]]))
    assert loss.tolist() == pytest.approx([0.895880, 0.223144], abs=1e-5)
    whole = ranking_nll(LOGITS[:1], torch.tensor([[1, 0, 2]]))
    assert whole.tolist() == pytest.approx([2 * 0.895880 / 3], abs=1e-5)


def test_reward_nll_of_thumbs() -> None:
    """δ = 0.05, so a thumb up has probability 0.05 + 0.9·p.

    Up for p = 0.5: −log(0.05 + 0.45) = −log 0.5 = 0.693147.
    Down for p = 0.8: −log(1 − 0.05 − 0.72) = −log 0.23 = 1.469676.
    """
    loss = reward_nll(LOGITS, torch.tensor([0, 1]), torch.tensor([1.0, 0.0]))
    assert loss.tolist() == pytest.approx([0.693147, 1.469676], abs=1e-5)


def test_reward_nll_between_the_thumbs_is_a_mixture() -> None:
    """Reward 0.7 for p = 0.5: up has probability 0.5, so either thumb costs log 2 = 0.693147, and so does a mixture.

    Reward 0.7 for p = 0.8: up 0.77. −0.7·log 0.77 − 0.3·log 0.23 = 0.7·0.261365 + 0.3·1.469676 = 0.623858.
    """
    loss = reward_nll(LOGITS, torch.tensor([0, 1]), torch.tensor([0.7, 0.7]))
    assert loss.tolist() == pytest.approx([0.693147, 0.623858], abs=1e-5)


def test_one_wrong_thumb_has_a_bounded_loss() -> None:
    """A thumb down on a certain answer, p = 1: −log(1 − 0.95) = 2.995732; with δ = 0 it would be infinite."""
    certain = torch.tensor([[100.0, 0.0]])
    down = torch.tensor([0.0])
    assert reward_nll(certain, torch.tensor([0]), down).item() == pytest.approx(2.995732, abs=1e-4)
    assert math.isinf(reward_nll(certain, torch.tensor([0]), down, noise=0.0).item())


def test_kl_to_reference() -> None:
    """π = (.5, .25, .25) from (.25, .5, .25): .5·log 2 − .25·log 2 + 0 = .25·log 2 = 0.173287; from itself 0."""
    reference = torch.log(torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]))
    assert kl_to_reference(LOGITS, reference).tolist() == pytest.approx([0.173287, 0.0], abs=1e-6)


def test_feedback_nll_of_single_actions() -> None:
    """Log-odds log 3 is p = ¾. δ = 0.05: up 0.725. Up: −log 0.725 = 0.321584; down: −log 0.275 = 1.290984.

    A rating of ½ costs half of each: 0.806284. Log-odds 0, either thumb: log 2 = 0.693147.
    """
    logits = torch.tensor([math.log(3)] * 3 + [0.0])
    loss = opinion_nll(logits, torch.tensor([1.0, 0.0, 0.5, 1.0]))
    assert loss.tolist() == pytest.approx([0.321584, 1.290984, 0.806284, 0.693147], abs=1e-5)


def test_preference_nll_is_bradley_terry_on_log_odds() -> None:
    """u = (log 6, log 2): P(first over second) = 6/(6 + 2) = ¾ without noise, so −log ¾ = 0.287682; the other way round
    −log ¼ = 1.386294; with δ = 0.05 it is 0.725, −log 0.725 = 0.321584."""
    first, second = torch.tensor([math.log(6)]), torch.tensor([math.log(2)])
    one = torch.ones(1)
    assert preference_nll(first, second, one, noise=0.0).item() == pytest.approx(0.287682, abs=1e-5)
    assert preference_nll(second, first, one, noise=0.0).item() == pytest.approx(1.386294, abs=1e-5)
    assert preference_nll(first, second, one).item() == pytest.approx(0.321584, abs=1e-5)


def test_users_who_disagree_prefer_neither() -> None:
    """Half of them prefer each: the loss is least, log 2, where both are worth the same."""
    half = torch.tensor([0.5])
    assert preference_nll(torch.zeros(1), torch.zeros(1), half).item() == pytest.approx(math.log(2), abs=1e-6)
    assert preference_nll(torch.ones(1), torch.zeros(1), half).item() > math.log(2)


def test_what_a_thumb_adds_to_the_precision_of_log_odds() -> None:
    """Without noise σ(1 − σ): ¼ at even odds, 3/16 at 3 to 1. With δ = 0.05: (0.9·¼)²/¼ = 0.2025 at even odds, and at
    3 to 1, p = 0.725: (0.9·3/16)²/(0.725·0.275) = 0.028477/0.199375 = 0.142830."""
    odds = torch.tensor([0.0, math.log(3)])
    assert opinion_information(odds, noise=0.0).tolist() == pytest.approx([0.25, 0.1875], abs=1e-6)
    assert opinion_information(odds, noise=0.05).tolist() == pytest.approx([0.2025, 0.142830], abs=1e-6)

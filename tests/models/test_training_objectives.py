"""Objectives by hand: what is drawn, what it is worth, and how far a draw may move the policy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

from plaudit_models.training.config import SamplingConfig
from plaudit_models.training.data.experiences import Experiences
from plaudit_models.training.losses import clipped_loss, group_advantages
from plaudit_models.training.objectives import Likelihood, Sampled, TargetPolicy

ROW = torch.tensor([0])


def _experiences(n: int = 1, **fields: Any) -> Experiences:
    defaults: dict[str, Any] = {
        "pools": {},
        "index": np.zeros((n, 1), np.int64),
        "action": np.zeros(n, np.int64),
        "reward": np.ones(n, np.float32),
        "correction": np.full(n, -1),
        "weight": np.ones(n, np.float32),
    }
    return Experiences(**(defaults | fields))


def _sampled(experiences: Experiences, rewards: torch.Tensor, **config: Any) -> Sampled:
    return Sampled(
        experiences,
        lambda rows, actions: rewards[rows].gather(1, actions),
        SamplingConfig(**config),
        Generator().manual_seed(0),
    )


def test_likelihood_by_hand() -> None:
    """P = (½, ½). Row 0: a thumb up on action 0 of trust 1: −log(0.05 + 0.9·½) = log 2. Row 1: a correction of trust ½:
    ½·log 2. Their mean is ¾·log 2 = 0.519860."""
    two = _experiences(2, correction=np.array([-1, 1]), weight=np.array([1.0, 0.5], np.float32))
    loss = Likelihood(two, noise=0.05)(torch.zeros(2, 2), torch.tensor([0, 1]), fresh=True)
    assert loss.item() == pytest.approx(0.75 * math.log(2), abs=1e-6)


def _target(parent: tuple[float, float], served: tuple[float, float], reward: tuple[float, float]) -> TargetPolicy:
    known = [torch.tensor([each]).log() for each in (parent, served)]
    rewards = torch.tensor([reward])
    return TargetPolicy(
        lambda rows: known[0],
        lambda rows: known[1],
        lambda rows, actions: rewards[rows].gather(1, actions),
        temperature=0.3,
    )


def test_the_target_by_hand() -> None:
    """Parent and served (½, ½), rewards (0.9, 0.6), β = 0.3: users miss η = ¼, and π* ∝ (e³, e²), so (0.731059,
    0.268941); a quarter of the way there is (0.557765, 0.442235). A policy of (¾, ¼) has the cross-entropy
    −0.557765·log ¾ − 0.442235·log ¼ = 0.160459 + 0.613068 = 0.773527.
    """
    loss = _target((0.5, 0.5), (0.5, 0.5), (0.9, 0.6))(torch.tensor([[0.75, 0.25]]).log(), ROW, fresh=True)
    assert loss.item() == pytest.approx(0.773527, abs=1e-5)


@pytest.mark.parametrize(
    ("served", "reward", "best"),
    [
        # η = 1 − 0.26 = 0.74, π_ref = 0.4524·(0.9, 0.1) + 0.2738 = (0.68096, 0.31904), π* = (0.224122, 0.775878)
        ((0.9, 0.1), (0.2, 0.8), (0.26 * 0.9 + 0.74 * 0.224122, 0.26 * 0.1 + 0.74 * 0.775878)),
        # η = 0: all that is served pleases, so the parent stays as it is.
        ((0.2, 0.8), (1.0, 1.0), (0.9, 0.1)),
        # η = 0.1: the head knows it. π_ref = (0.104, 0.896), π* ∝ (0.104, 0.896·e^(1/0.3)): (0.0041236, 0.9958764)
        ((0.1, 0.9), (0.0, 1.0), (0.9 * 0.9 + 0.1 * 0.0041236, 0.9 * 0.1 + 0.1 * 0.9958764)),
    ],
)
def test_the_trunk_is_asked_for_what_users_miss_by_hand(
    served: tuple[float, float], reward: tuple[float, float], best: tuple[float, float]
) -> None:
    """Parent (0.9, 0.1), β = 0.3; at the target the cross-entropy has no gradient."""
    logits = torch.tensor([best]).log().requires_grad_()
    _target((0.9, 0.1), served, reward)(logits, ROW, fresh=True).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max().item() < 1e-5


def test_a_target_needs_a_temperature() -> None:
    with pytest.raises(ValueError, match=r"temperature: 0.0 must be greater than 0"):
        TargetPolicy(lambda rows: rows, lambda rows: rows, lambda rows, actions: actions, temperature=0.0)


def test_advantages_by_hand() -> None:
    """Rewards 1, 0, 0, 1: mean ½, deviation ½, so advantages ±1. Rewards 3, 1, 1, 1 (of any scale): mean 1.5, variance
    (2.25 + 3·0.25)/4 = 0.75, so 1.5/0.866025 = 1.732051 and −0.577350. Equal rewards: 0."""
    reward = torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 1.0, 1.0, 1.0], [0.3, 0.3, 0.3, 0.3]])
    expected = torch.tensor([[1.0, -1.0, -1.0, 1.0], [1.732051, *[-0.577350] * 3], [0.0] * 4])
    torch.testing.assert_close(group_advantages(reward), expected, atol=3e-4, rtol=0)


def test_the_clip_by_hand() -> None:
    """ε = 0.2. Ratio 1.5, A = 2: min(3, 1.2·2) = 2.4. Ratio 1.5, A = −2: min(−3, −2.4) = −3. Ratio 0.5, A = 2:
    min(1, 1.6) = 1. Ratio 0.5, A = −2: min(−1, −1.6) = −1.6. Gradients dloss/dlog ρ = −ρA where not clipped, else 0.
    """
    log_ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5]]).log().requires_grad_()
    loss = clipped_loss(log_ratio, torch.tensor([[2.0, -2.0, 2.0, -2.0]]), clip=0.2)
    assert loss[0].tolist() == pytest.approx([-2.4, 3.0, -1.0, 1.6], abs=1e-6)
    loss.sum().backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad[0].tolist() == pytest.approx([0.0, 3.0, -1.0, 0.0], abs=1e-6)


def test_a_sampled_loss_by_hand() -> None:
    """π = (¾, ¼) when it drew and (0.8, 0.2) now: ratios 16/15 and 4/5, which is where the clip of 0.2 begins.

    With a share p of 1,000 draws on action 0 (reward 0.8 against 0.2) the rewards have deviation 0.6·√(p(1−p)), so the
    advantages are √((1−p)/p) and −√(p/(1−p)), and the loss is −√(p(1−p))·(16/15 − 4/5). On a fresh draw ratios are 1,
    and the loss is minus the mean advantage, 0. p: nine tenths of ¾ and a tenth of ½ make 0.725.
    """
    objective = _sampled(_experiences(), torch.tensor([[0.8, 0.2]]), samples=1000)
    drawn = objective(torch.tensor([[0.75, 0.25]]).log(), ROW, fresh=True)
    p = (objective._actions == 0).float().mean().item()
    assert p == pytest.approx(0.725, abs=0.05)
    assert drawn.item() == pytest.approx(0.0, abs=1e-5)
    loss = objective(torch.tensor([[0.8, 0.2]]).log(), ROW, fresh=False)
    assert loss.item() == pytest.approx(-math.sqrt(p * (1 - p)) * (16 / 15 - 4 / 5), abs=1e-3)


def test_a_draw_is_kept_until_a_fresh_one_is_asked_for() -> None:
    """The second call moves the policy beyond the clip on the same draw, so nothing is left to gain: no gradient."""
    objective = _sampled(_experiences(), torch.tensor([[1.0, 0.0]]), samples=64)
    objective(torch.zeros(1, 2), ROW, fresh=True)
    drawn = objective._actions.clone()
    moved = torch.tensor([[2.0, -2.0]], requires_grad=True)
    objective(moved, ROW, fresh=False).backward()
    assert torch.equal(objective._actions, drawn)
    assert moved.grad is not None
    assert moved.grad.abs().max() == 0.0
    objective(torch.zeros(1, 2), ROW, fresh=True)
    assert not torch.equal(objective._actions, drawn)


def test_what_was_not_allowed_is_never_drawn() -> None:
    mask = np.array([[True, False, True]])
    objective = _sampled(_experiences(allowed_mask=mask), torch.tensor([[0.0, 1.0, 0.5]]), samples=500, floor=0.9)
    loss = objective(torch.zeros(1, 3, requires_grad=True), ROW, fresh=True)
    loss.backward()
    assert set(objective._actions[0].tolist()) == {0, 2}
    assert torch.isfinite(loss)


def test_draws_have_the_frequencies_of_policy_and_floor() -> None:
    """π = (0.7, 0.2, 0.1), floor 0.3: 0.7·π + 0.1 = (0.59, 0.24, 0.17); 4 standard errors of 20,000 are 0.014."""
    objective = _sampled(_experiences(), torch.zeros(1, 3), samples=20_000, floor=0.3)
    objective(torch.tensor([[0.7, 0.2, 0.1]]).log(), ROW, fresh=True)
    shares = torch.bincount(objective._actions[0], minlength=3) / 20_000
    assert shares.tolist() == pytest.approx([0.59, 0.24, 0.17], abs=0.014)


def test_an_answer_that_the_policy_hardly_gives_is_followed_all_the_same() -> None:
    """π(1) = 1e-6 and only action 1 is worth anything: a draw of it moves log π(1) by its whole advantage."""
    objective = _sampled(_experiences(), torch.tensor([[0.0, 1.0]]), samples=1000, floor=0.2)
    logits = torch.tensor([[1.0, 1e-6]]).log().requires_grad_()
    objective(logits, ROW, fresh=True).backward()
    p = (objective._actions == 1).float().mean().item()
    assert p == pytest.approx(0.1, abs=0.04)
    assert logits.grad is not None
    assert -logits.grad[0, 1].item() == pytest.approx(math.sqrt(p * (1 - p)), abs=1e-3)


def test_gradient_descent_on_many_actions_finds_the_best_of_them() -> None:
    """500 actions, 16 of them asked a step: only action 137 is worth anything, and the policy hardly ever gave it."""
    rewards = torch.zeros(64, 500)
    rewards[:, 137] = 1.0
    objective = _sampled(_experiences(64), rewards, floor=0.3)
    logits = torch.zeros(500, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for step in range(400):
        optimizer.zero_grad()
        objective(logits.expand(64, -1), torch.arange(64), fresh=step % 4 == 0).backward()
        optimizer.step()
    assert logits.softmax(0)[137].item() > 0.9


@pytest.mark.parametrize("wrong", [{"samples": 1}, {"clip": 0.0}, {"floor": 1.0}, {"sample_reuse": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs samples ≥ 2, clip and floor in \(0, 1\), and sample_reuse ≥ 1"):
        SamplingConfig(**wrong)


def test_an_answer_that_was_not_allowed_cannot_have_been_served() -> None:
    with pytest.raises(ValueError, match="allowed_mask: does not allow action 0 of experience 0"):
        _experiences(allowed_mask=np.array([[False, True]]))

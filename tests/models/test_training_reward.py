"""The full reward model: its likelihood and calibration by hand, and what it learns from each kind of signal.

Two sensors; users like the action that is the sign of the left one ("plus" if it is positive), whatever the question.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from plaudit_models.spec import ModelSpec, TensorModality, TextModality
from plaudit_models.training.config import RewardConfig
from plaudit_models.training.data.experiences import Experiences
from plaudit_models.training.data.feedback_targets import FeedbackTargets, build_feedback_targets
from plaudit_models.training.data.rows import Source
from plaudit_models.training.networks.fusion import FusionConfig, FusionPolicy
from plaudit_models.training.reward import (
    RewardModel,
    RewardReport,
    fit_reward_model,
    platt,
    rewards_on,
    targets_nll,
)

ACTIONS = ("minus", "plus", "none")
SPEC = ModelSpec("signs", {"sensor": TensorModality((2,)), "which": TextModality(2)}, ACTIONS, embedding_size=12)
CONFIG = FusionConfig(vocabulary_size=5, width=16, layers=1, attention_heads=2, tokens_per_modality=1)
SETTINGS = RewardConfig(
    replays_per_experience=20, max_duration_s=None, learning_rate=5e-3, trained_encoders=("text", "tensor")
)


@pytest.fixture(scope="module")
def policy() -> FusionPolicy:
    torch.manual_seed(0)
    return FusionPolicy(SPEC, CONFIG).eval()


def _experiences(n: int, seed: int) -> tuple[Experiences, np.ndarray]:
    """Random answers, and the right ones."""
    rng = np.random.default_rng(seed)
    sensor = (rng.choice((-1.0, 1.0), (n, 1)) * rng.uniform(0.5, 1.5, (n, 2))).astype(np.float32)
    right = (sensor[:, 0] > 0).astype(np.int64)
    action = rng.integers(2, size=n)
    return Experiences(
        pools={"sensor": sensor, "which": np.array([[1, 0]])},
        index=np.stack([np.arange(n), np.zeros(n, np.int64)], axis=1),
        action=action,
        reward=(action == right).astype(np.float32),
        correction=np.full(n, -1),
        weight=np.ones(n, np.float32),
    ), right


def _thumbs(experiences: Experiences, rewards: np.ndarray | None = None) -> FeedbackTargets:
    rewards = experiences.reward if rewards is None else rewards
    said = [{int(a): float(r)} for a, r in zip(experiences.action, rewards, strict=True)]
    return build_feedback_targets(said, [1.0] * len(said), len(ACTIONS), exclusivity=0.0)


def _asked(model: RewardModel, experiences: Experiences) -> np.ndarray:
    """q of every action, ``[n, a]``."""
    n = len(experiences)
    return rewards_on(model, experiences)(torch.arange(n), torch.arange(len(ACTIONS)).expand(n, -1)).numpy()


def _found(model: RewardModel) -> float:
    """How often it finds the right one of two actions on contents that it has not seen."""
    fresh, right = _experiences(300, 9)
    return float((_asked(model, fresh)[:, :2].argmax(axis=1) == right).mean())


def test_the_likelihood_by_hand() -> None:
    """No noise. Row 0: u = (0, log 3): a thumb up on action 0 costs −log ½, and speaks with weight 0.1 against action
    1: 0.1·(−log(1 − ¾)); 0.693147 + 0.138629 = 0.831777. Row 1: u = (log 6, log 2), action 0 preferred, of trust ½:
    ½·(−log ¾) = 0.143841."""
    made = build_feedback_targets([{0: 1.0}, {0: 0.75, 1: 0.25}], [1.0, 0.5], 2, exclusivity=0.1)
    said = {name: torch.from_numpy(getattr(made, name)) for name in FeedbackTargets.__dataclass_fields__}
    odds = torch.tensor([[0.0, math.log(3)], [math.log(6), math.log(2)]])
    assert targets_nll(odds, said, noise=0.0).tolist() == pytest.approx([0.831777, 0.143841], abs=1e-5)


def test_before_any_feedback_it_believes_what_the_policy_does(policy: FusionPolicy) -> None:
    """But for a doubt of 0.05: log-odds of 0.05 + 0.9·P."""
    experiences, _ = _experiences(5, 0)
    contents = (torch.from_numpy(experiences.pools["sensor"]), torch.tensor([[1, 0]]).expand(5, -1), torch.ones(5, 2))
    with torch.no_grad():
        embedding, logits = policy(*contents)
        odds = RewardModel(policy).log_odds(embedding)
    torch.testing.assert_close(odds.sigmoid(), 0.05 + 0.9 * logits.softmax(1))


def test_a_sure_policy_can_be_argued_with(policy: FusionPolicy) -> None:
    """Logits (30, 0, 0): p = 1 and 0 become 0.95 and 0.05, log-odds ±log 19 = ±2.944439."""
    model = RewardModel(policy)
    with torch.no_grad():
        model.trunk.action_head.weight.zero_()
        model.trunk.action_head.bias.copy_(torch.tensor([30.0, 0.0, 0.0]))
    odds = model.log_odds(torch.zeros(1, 12))
    assert odds[0].tolist() == pytest.approx([2.944439, -2.944439, -2.944439], abs=1e-4)


def test_platt_finds_the_line_that_made_the_rewards() -> None:
    """Rewards drawn with log-odds ½·u − 1."""
    generator = torch.Generator().manual_seed(0)
    odds = torch.randn(20_000, generator=generator) * 2
    reward = torch.bernoulli(torch.sigmoid(0.5 * odds - 1.0), generator=generator)
    assert platt(odds, reward, noise=0.0) == pytest.approx((0.5, -1.0), abs=0.05)


def test_platt_without_rewards_changes_nothing() -> None:
    assert platt(torch.zeros(0), torch.zeros(0), noise=0.05) == (1.0, 0.0)


def test_it_learns_from_thumbs_and_says_how_well(policy: FusionPolicy) -> None:
    """400 thumbs, 5 % of them wrong: it beats the policy's beliefs on those held out, and finds the right answer."""
    experiences, _ = _experiences(400, 1)
    wrong = np.random.default_rng(2).random(400) < 0.05
    rewards = np.where(wrong, 1 - experiences.reward, experiences.reward)
    model, report = fit_reward_model(policy, experiences, _thumbs(experiences, rewards), config=SETTINGS)
    assert _found(model) > 0.95
    assert (report.trained_on, report.held_out, report.steps) == (320, 40, 100)
    assert report.log_loss < report.parent_log_loss - 0.2
    assert report.calibration_error < 0.15
    assert sum(report.count) == 40


def _sigma_of_odds(model: RewardModel, experiences: Experiences) -> torch.Tensor:
    """Standard deviation of u of every action, ``[n, a]``."""
    embedding = Source(model.trunk, experiences.pools, experiences.index, ()).embeddings()
    features = torch.cat([embedding, torch.ones(len(embedding), 1)], dim=1)
    return model.last_layer.variance(features, torch.arange(3).expand(len(embedding), 3)).sqrt()


def test_what_is_unsure_is_worth_less_than_it_seems_by_hand(policy: FusionPolicy) -> None:
    """Nobody spoke yet, and φ = (0, …, 0, 1): ω = log 19 = 2.944439, so that log-odds are divided by
    √(1 + π·8.669721/8) = √4.404590 = 2.098712. u = ±log 19 becomes ±1.402975: 0.802655 instead of 0.95. So is ω."""
    model = RewardModel(policy)
    odds = torch.tensor([[math.log(19), -math.log(19)]])
    moderated, deviation = model.moderated(torch.zeros(1, 12), torch.tensor([[0, 2]]), odds)
    assert deviation[0].tolist() == pytest.approx([1.402975, 1.402975], abs=1e-5)
    assert moderated[0].tolist() == pytest.approx([1.402975, -1.402975], abs=1e-5)
    up = (model.rewards(moderated)[0] - 0.05) / 0.9
    assert up.tolist() == pytest.approx([0.802655, 0.197345], abs=1e-5)


def test_how_unsure_a_reward_is_by_hand(policy: FusionPolicy) -> None:
    """Slope 2, noise 0.05, m with a deviation of 3: at m = 0, q moves by 0.9·2·½·½ = 0.45 with m, so σ = 1.35; at
    m = log 3 / 2 by 0.9·2·¾·¼ = 0.3375, so σ = 1.0125."""
    model = RewardModel(policy, noise=0.05)
    model.slope.fill_(2.0)
    sigma = model.uncertainty(torch.tensor([0.0, math.log(3) / 2]), torch.tensor([3.0, 3.0]))
    assert sigma.tolist() == pytest.approx([1.35, 1.0125], abs=1e-5)


def test_it_is_surer_of_actions_with_feedback(policy: FusionPolicy) -> None:
    """ "none" was never served: its log-odds are as unsure as before; those of the other two are far surer."""
    experiences, _ = _experiences(400, 1)
    model, report = fit_reward_model(policy, experiences, _thumbs(experiences), config=SETTINGS)
    sigma = _sigma_of_odds(model, experiences)
    assert sigma[:, 2].square().mean().sqrt().item() == pytest.approx(math.log(19), rel=0.02)
    assert sigma[:, :2].mean().item() < 0.5 * sigma[:, 2].mean().item()
    assert report.sigma_mean > 0.0
    assert report.sigma == sorted(report.sigma)
    assert report.sigma_count == [10, 10, 10, 10]


def test_more_thumbs_make_it_surer(policy: FusionPolicy) -> None:
    few, many = (_experiences(n, 1)[0] for n in (100, 800))
    config = RewardConfig(replays_per_experience=1, max_duration_s=None)
    fitted = [fit_reward_model(policy, each, _thumbs(each), config=config)[0] for each in (few, many)]
    less, more = (_sigma_of_odds(model, few)[:, :2].mean().item() for model in fitted)
    assert more < 0.7 * less


def test_rewards_to_be_counted_on_are_lower_by_so_many_deviations(policy: FusionPolicy) -> None:
    """Asked about some actions it says what it says among all, with and without pessimism."""
    experiences, _ = _experiences(100, 1)
    model, _ = fit_reward_model(policy, experiences, _thumbs(experiences), config=SETTINGS)
    rows, every = torch.arange(100), torch.arange(3).expand(100, 3)
    some = torch.tensor([[2, 0]]).expand(100, 2)
    embedding = Source(model.trunk, experiences.pools, experiences.index, ()).embeddings()
    expected, lower = rewards_on(model, experiences), rewards_on(model, experiences, pessimism=0.5)
    moderated, deviation = model.moderated(embedding, every, model.log_odds(embedding))
    torch.testing.assert_close(expected(rows, every), model.rewards(moderated))
    torch.testing.assert_close(expected(rows, some), expected(rows, every)[:, [2, 0]])
    torch.testing.assert_close(lower(rows, some), lower(rows, every)[:, [2, 0]])
    difference = expected(rows, every) - lower(rows, every)
    torch.testing.assert_close(difference, 0.5 * model.uncertainty(moderated, deviation))


def test_what_praise_implies_about_others_is_no_observation_of_them(policy: FusionPolicy) -> None:
    """Thumbs up for "plus" alone speak against "minus" as an assumption: it stays as unsure as without feedback."""
    experiences, _ = _experiences(60, 1)
    made = build_feedback_targets([{1: 1.0}] * 60, [1.0] * 60, 3, exclusivity=0.1)
    model, _ = fit_reward_model(policy, experiences, made, config=SETTINGS)
    sigma = _sigma_of_odds(model, experiences)
    torch.testing.assert_close(sigma[:, 0], sigma[:, 2])
    assert (sigma[:, 1] < sigma[:, 0]).all()


def test_a_comparison_is_an_observation_of_both(policy: FusionPolicy) -> None:
    experiences, right = _experiences(60, 1)
    made = build_feedback_targets([{int(r): 0.75, 1 - int(r): 0.25} for r in right], [1.0] * 60, 3, exclusivity=0.1)
    model, _ = fit_reward_model(policy, experiences, made, config=SETTINGS)
    sigma = _sigma_of_odds(model, experiences)
    assert (sigma[:, :2].amax(dim=1) < 0.9 * sigma[:, 2]).all()


def test_it_learns_from_corrections(policy: FusionPolicy) -> None:
    experiences, right = _experiences(200, 1)
    said = [{k: float(k == int(r)) for k in range(3)} for r in right]
    made = build_feedback_targets(said, [1.0] * 200, 3, exclusivity=0.1)
    model, _ = fit_reward_model(policy, experiences, made, config=SETTINGS)
    assert _found(model) > 0.95
    fresh, _ = _experiences(100, 9)
    assert _asked(model, fresh)[:, 2].mean() < 0.2


def test_it_learns_from_preferences_alone(policy: FusionPolicy) -> None:
    experiences, right = _experiences(200, 1)
    made = build_feedback_targets([{int(r): 0.75, 1 - int(r): 0.25} for r in right], [1.0] * 200, 3, exclusivity=0.1)
    model, report = fit_reward_model(policy, experiences, made, config=SETTINGS)
    assert _found(model) > 0.95
    assert (report.held_out, report.slope, report.intercept) == (0, 1.0, 0.0)
    assert "log_loss" not in report.to_dict()


def test_feedback_without_trust_teaches_nothing(policy: FusionPolicy) -> None:
    experiences, right = _experiences(100, 1)
    said = [{int(r): 0.75, 1 - int(r): 0.25} if i % 2 else {int(r): 1.0} for i, r in enumerate(right)]
    config = RewardConfig(max_duration_s=None, weight_decay=0.0)
    model, _ = fit_reward_model(
        policy, experiences, build_feedback_targets(said, [0.0] * 100, 3, exclusivity=0.1), config=config
    )
    assert not model.verdict.weight.any()


def test_the_policy_is_left_as_it_is_and_the_seed_decides(policy: FusionPolicy) -> None:
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    experiences, _ = _experiences(100, 1)

    def fitted(seed: int) -> tuple[torch.Tensor, RewardReport]:
        config = RewardConfig(max_duration_s=None, seed=seed)
        model, report = fit_reward_model(policy, experiences, _thumbs(experiences), config=config)
        return model.verdict.weight, report

    (first, report), (same, again), (other, _) = fitted(1), fitted(1), fitted(2)
    assert torch.equal(first, same)
    assert report.log_loss == again.log_loss
    assert not torch.equal(first, other)
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.state_dict().items())


def test_rows_that_do_not_match_are_refused(policy: FusionPolicy) -> None:
    experiences, _ = _experiences(3, 1)
    with pytest.raises(ValueError, match="feedback_targets: 2 rows for 3 experiences"):
        fit_reward_model(
            policy, experiences, build_feedback_targets([{0: 1.0}] * 2, [1.0] * 2, 3, exclusivity=0.1), config=SETTINGS
        )

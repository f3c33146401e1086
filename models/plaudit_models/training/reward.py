"""Full reward model: content and action → expected reward, from a trunk of its own that began as the policy's.

    u(x, k) = logit(γ + (1 − 2γ)·softmax(z(x))_k) + v_kᵀ·e(x) + c_k     log-odds that action k is right
    m(x, k) = u(x, k)/√(1 + π·ω(x, k)²/8)              what that comes to, ω being the standard deviation of u
    q(x, k) = δ + (1 − 2δ)·sigmoid(s·m(x, k) + t)      expected reward, thumbs being wrong with probability δ
    σ(x, k) = dq/du·ω(x, k)                            how unsure that is

with e the embedding of its own trunk, z the base logits that the policy's action head makes of it, v and c zero at
first. Before any feedback, an answer is worth what the policy thinks of it, but for a doubt γ, so that users can
argue with a policy that is sure. What turns the policy's answers round turns these round; v and c tell apart what a
softmax cannot, that several answers are right, or none. How unsure u is, is the posterior of its last layer
(:mod:`.last_layer`) with φ = (e, 1); moderated by it (MacKay 1992, "The Evidence Framework Applied to Classification
Networks", equation 10), an answer without feedback is neither as good nor as bad as it seems.

Thumbs, ratings, corrections and preferences are terms of one likelihood
(:mod:`plaudit_models.training.data.feedback_targets`): opinions about single actions are Bernoulli in sigmoid(u),
preferences Bradley-Terry in u_k − u_l. Slope s and intercept t are fitted on experiences that it was not trained on
(Platt 1999, "Probabilistic Outputs for Support Vector Machines"). How well calibrated it then is, and whether σ tells
where it errs, is measured on others again.

Knows nothing about policies in training or logs.

Notation:
    n: experiences, b: rows of a batch, d: embedding size, a: number of actions, g: actions asked about per row
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from plaudit_models.evaluation.calibration import errors_by_uncertainty, reliability
from plaudit_models.training.config import RewardConfig
from plaudit_models.training.data.experiences import Experiences
from plaudit_models.training.data.feedback_targets import NO_PAIR, FeedbackTargets
from plaudit_models.training.data.rows import Source, freeze_encoders
from plaudit_models.training.losses import opinion_information, opinion_nll, preference_nll
from plaudit_models.training.networks.fusion import FusionPolicy
from plaudit_models.training.networks.last_layer import LastLayer
from plaudit_models.training.objectives import Rewards
from plaudit_models.training.schedule import descend, fraction_done, one_cycle, shuffled

_DOUBT = 0.05
"""γ: what the policy is sure of, three nats of feedback can turn round."""
_HELD_OUT = 10
"""One in so many experiences calibrates, as many measure the calibration."""
_ITERATIONS = 50
_CHUNK_ROWS = 512
_UNTRIED = math.log((1.0 - _DOUBT) / _DOUBT)
"""Standard deviation of the log-odds of an action without feedback: as much as a sure policy is believed."""


@dataclass(frozen=True, slots=True)
class RewardReport:
    """Training of the reward model, and its quality on served answers that it was not trained or calibrated on.

    Attributes:
        trained_on: experiences.
        slope: s.
        intercept: t.
        held_out: experiences measured on; with none, what follows is empty or NaN.
        log_loss: of its predictions, in nats per experience; ``parent_log_loss`` that of the parent's beliefs.
        calibration_error: expected calibration error (:mod:`plaudit_models.evaluation.calibration`).
        predicted: mean prediction of each bin of the reliability curve.
        observed: mean reward of each bin.
        count: experiences of each bin.
        sigma_mean: mean σ of the answers served.
        sigma: mean σ of each quarter of them, from the surest to the least sure.
        error: mean |reward − prediction| of each quarter.
        error_expected: what that would be if q were exact, the mean of 2q(1 − q).
        sigma_count: experiences of each quarter.
    """

    trained_on: int
    steps: int
    duration_s: float
    slope: float
    intercept: float
    held_out: int
    log_loss: float
    parent_log_loss: float
    calibration_error: float
    predicted: list[float]
    observed: list[float]
    count: list[int]
    sigma_mean: float
    sigma: list[float]
    error: list[float]
    error_expected: list[float]
    sigma_count: list[int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; JSON knows no NaN, so such fields are left out."""
        return {
            name: value for name, value in asdict(self).items() if not (isinstance(value, float) and math.isnan(value))
        }


class RewardModel(nn.Module):
    """u, m, q and σ of the notation above.

    Args:
        policy: the parent; a copy of it is the trunk that learns.
        noise: δ in [0, 0.5).
    """

    def __init__(self, policy: FusionPolicy, noise: float = 0.05) -> None:
        super().__init__()
        self.noise = noise
        self.trunk = copy.deepcopy(policy).eval()  # batch norm keeps the statistics of pre-training
        self.verdict = nn.Linear(policy.spec.embedding_size, len(policy.spec.actions))
        nn.init.zeros_(self.verdict.weight)
        nn.init.zeros_(self.verdict.bias)
        self.last_layer = LastLayer(policy.spec.embedding_size + 1, len(policy.spec.actions), _UNTRIED)
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("intercept", torch.zeros(()))
        self.slope: Tensor
        self.intercept: Tensor

    def log_odds(self, embedding: Tensor) -> Tensor:
        """u ``[b, a]`` at what the trunk makes of content, ``[b, d]``."""
        belief = torch.softmax(self.trunk.action_head(embedding), dim=1)
        return _doubted(belief) + self.verdict(embedding)

    def log_odds_of(self, embedding: Tensor, actions: Tensor, log_normaliser: Tensor) -> Tensor:
        """u ``[b, g]`` of some actions, without a look at the others.

        Args:
            embedding: ``[b, d]``.
            actions: ``[b, g]``.
            log_normaliser: log Σ_l exp(z_l) of each row's base logits, ``[b]``.
        """
        base, own = (_of_actions(layer, embedding, actions) for layer in (self.trunk.action_head, self.verdict))
        return _doubted((base - log_normaliser[:, None]).exp()) + own

    def moderated(self, embedding: Tensor, actions: Tensor, log_odds: Tensor) -> tuple[Tensor, Tensor]:
        """m of some actions, and its standard deviation ω·dm/du, ``[b, g]`` each.

        Args:
            embedding: ``[b, d]``.
            actions: ``[b, g]``.
            log_odds: u of these actions, ``[b, g]``.
        """
        variance = self.last_layer.variance(_with_one(embedding), actions)
        less = (1.0 + math.pi / 8.0 * variance).rsqrt()
        return less * log_odds, less * variance.sqrt()

    def rewards(self, moderated: Tensor) -> Tensor:
        """q at m, any shape."""
        up = torch.sigmoid(self.slope * moderated + self.intercept)
        return self.noise + (1.0 - 2.0 * self.noise) * up

    def uncertainty(self, moderated: Tensor, deviation: Tensor) -> Tensor:
        """σ at m, from the standard deviation of m, any shape, in reward."""
        right = torch.sigmoid(self.slope * moderated + self.intercept)
        return (1.0 - 2.0 * self.noise) * self.slope.abs() * right * (1.0 - right) * deviation


def _doubted(belief: Tensor) -> Tensor:
    return torch.logit(_DOUBT + (1.0 - 2.0 * _DOUBT) * belief)


def _of_actions(layer: nn.Linear, embedding: Tensor, actions: Tensor) -> Tensor:
    """Some outputs of a linear layer, ``[b, g]``."""
    return torch.einsum("bd,bgd->bg", embedding, layer.weight[actions]) + layer.bias[actions]


def _with_one(embedding: Tensor) -> Tensor:
    """φ of the last layer, whose bias is a weight of 1."""
    return torch.cat([embedding, embedding.new_ones(len(embedding), 1)], dim=1)


def fit_reward_model(
    policy: FusionPolicy, experiences: Experiences, feedback_targets: FeedbackTargets, *, config: RewardConfig
) -> tuple[RewardModel, RewardReport]:
    """Train on the feedback, calibrate, and measure.

    Args:
        policy: policy to start from; not changed.
        experiences: content and served actions.
        feedback_targets: feedback, a row per experience.

    Raises:
        ValueError: the rows do not match, or there are none.
        FloatingPointError: the loss is no longer finite.
    """
    if len(experiences) == 0 or len(experiences) != len(feedback_targets):
        raise ValueError(
            f"feedback_targets: {len(feedback_targets)} rows for {len(experiences)} experiences; need as many, "
            "1 or more"
        )
    start_s = time.monotonic()
    model = RewardModel(policy, config.noise)
    generator = Generator().manual_seed(config.seed)
    train, calibrate, measure = _split(experiences, feedback_targets, generator)
    own = Source(model.trunk, experiences.pools, experiences.index, config.trained_encoders)
    reward = torch.from_numpy(feedback_targets.reward)
    action = torch.from_numpy(experiences.action)

    def served(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u, m, its standard deviation, and the reward of the answers that were served."""
        served_action = action[rows, None]
        embedding = own.still(rows)[0]
        with torch.no_grad():
            odds = model.log_odds(embedding).gather(1, served_action)
            moderated, deviation = model.moderated(embedding, served_action, odds)
        return odds[:, 0], moderated[:, 0], deviation[:, 0], reward[rows].gather(1, served_action)[:, 0]

    before, *_ = served(measure)
    steps = _train(model, own, feedback_targets, train, config, generator, start_s)
    model.requires_grad_(False)
    _observe(model, own.embeddings(), feedback_targets, train)
    _, moderated, _, said = served(calibrate)
    slope, intercept = platt(moderated, said, noise=config.noise)
    model.slope.fill_(slope)
    model.intercept.fill_(intercept)
    _, after, deviation, observed = served(measure)
    predicted, came = model.rewards(after).double().numpy(), observed.double().numpy()
    sigma = model.uncertainty(after, deviation).double().numpy()
    curve, unsure = reliability(predicted, came), errors_by_uncertainty(sigma, predicted, came)
    return model, RewardReport(
        trained_on=len(train),
        steps=steps,
        duration_s=time.monotonic() - start_s,
        slope=slope,
        intercept=intercept,
        held_out=len(measure),
        log_loss=float(opinion_nll(slope * after + intercept, observed, noise=config.noise).mean()),
        parent_log_loss=float(opinion_nll(before, observed, noise=config.noise).mean()),
        calibration_error=curve.error,
        predicted=curve.predicted.tolist(),
        observed=curve.observed.tolist(),
        count=curve.count.tolist(),
        sigma_mean=float(sigma.mean()) if len(sigma) else float("nan"),
        sigma=unsure.sigma.tolist(),
        error=unsure.error.tolist(),
        error_expected=unsure.noise.tolist(),
        sigma_count=unsure.count.tolist(),
    )


def save_reward_model(model: RewardModel, path: Path) -> None:
    save_file(model.state_dict(), path)


def load_reward_model(path: Path, policy: FusionPolicy) -> RewardModel:
    """Model that :func:`save_reward_model` wrote and that began as ``policy``."""
    model = RewardModel(policy)
    model.load_state_dict(load_file(path))
    return model.requires_grad_(False)


def rewards_on(model: RewardModel, experiences: Experiences, *, pessimism: float = 0.0) -> Rewards:
    """Rewards q − κ·σ of the model on these contents, which are encoded once, now.

    Asking about some of many actions costs what they cost, however many there are.

    Args:
        pessimism: κ ≥ 0; 0 are the expected rewards.
    """
    embedding = Source(model.trunk, experiences.pools, experiences.index, ()).embeddings()
    with torch.no_grad():
        log_normaliser = torch.cat([model.trunk.action_head(e).logsumexp(dim=1) for e in embedding.split(_CHUNK_ROWS)])
    n_actions = model.verdict.out_features

    def rewards(rows: Tensor, actions: Tensor) -> Tensor:
        with torch.no_grad():
            seen = embedding[rows]
            if actions.shape[1] < n_actions:
                odds = model.log_odds_of(seen, actions, log_normaliser[rows])
            else:
                odds = model.log_odds(seen).gather(1, actions)
            moderated, deviation = model.moderated(seen, actions, odds)
            expected = model.rewards(moderated)
            return expected - pessimism * model.uncertainty(moderated, deviation) if pessimism > 0 else expected

    return rewards


def platt(log_odds: Tensor, reward: Tensor, *, noise: float) -> tuple[float, float]:
    """Slope and intercept of s·u + t that make rewards likeliest (Platt 1999), with one observation's worth of faith in
    1 and 0, where they stay if there are no rewards.

    Args:
        log_odds: u ``[n]``.
        reward: in [0, 1], ``[n]``.
    """
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    odds, reward = log_odds.double(), reward.double()
    optimizer = torch.optim.LBFGS([line], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        nll = opinion_nll(line[0] * odds + line[1], reward, noise=noise).sum()
        faith = 0.5 * ((line[0] - 1.0).square() + line[1].square())
        total: Tensor = nll + faith
        total.backward()
        return total

    optimizer.step(loss)
    slope, intercept = line.tolist()
    return slope, intercept


def targets_nll(log_odds: Tensor, feedback_targets: Mapping[str, Tensor], *, noise: float) -> Tensor:
    """−log likelihood of everything that is said about each row, in nats, ``[b]``.

    Args:
        log_odds: u ``[b, a]``.
        feedback_targets: fields of :class:`plaudit_models.training.data.feedback_targets.FeedbackTargets`, ``[b]`` or
            ``[b, a]``.
    """
    alone = (feedback_targets["weight"] * opinion_nll(log_odds, feedback_targets["reward"], noise=noise)).sum(dim=1)
    preferred, rejected = (
        log_odds.gather(1, feedback_targets[name].clamp_min(0)[:, None])[:, 0] for name in ("preferred", "rejected")
    )
    pair = feedback_targets["trust"] * preference_nll(preferred, rejected, feedback_targets["share"], noise=noise)
    return alone + torch.where(feedback_targets["preferred"] != NO_PAIR, pair, 0.0)


def _train(
    model: RewardModel,
    own: Source,
    feedback_targets: FeedbackTargets,
    train: Tensor,
    config: RewardConfig,
    generator: Generator,
    start_s: float,
) -> int:
    """Descend the likelihood; returns how many steps were taken."""
    weights = [*freeze_encoders(model.trunk, config.trained_encoders), *model.verdict.parameters()]
    optimizer = torch.optim.AdamW(weights, weight_decay=config.weight_decay, fused=True)
    said = {name: torch.from_numpy(getattr(feedback_targets, name)) for name in FeedbackTargets.__dataclass_fields__}
    batches = shuffled(len(train), config.replay_rows, generator)
    steps = math.ceil(config.replays_per_experience * len(train) / config.replay_rows)
    for step in range(steps):
        fraction = fraction_done(step, steps, time.monotonic() - start_s, config.max_duration_s)
        if fraction >= 1.0:
            return step
        rows = train[next(batches)]
        odds = model.log_odds(own.fused(rows)[0])
        loss = targets_nll(odds, {name: each[rows] for name, each in said.items()}, noise=config.noise).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"reward model: the loss is {float(loss)} at step {step}")
        rate = config.learning_rate * one_cycle(fraction)
        descend(loss, optimizer, learning_rate=rate, max_gradient_norm=config.max_gradient_norm)
    return steps


def _observe(model: RewardModel, embedding: Tensor, feedback_targets: FeedbackTargets, rows: Tensor) -> None:
    """Make the model as sure as what users said outright allows, of those rows of ``embedding`` ``[n, d]``.

    What praise of one answer implies about others is no observation of them. A comparison is one of both, each taken
    for itself: what it says of the two together is left out, as between all actions.
    """
    seen, actions, weights = [], [], []
    for some in rows.split(_CHUNK_ROWS):
        i = some.numpy()
        trust = torch.from_numpy(np.where(feedback_targets.spoken_mask[i], feedback_targets.weight[i], 0.0))
        with torch.no_grad():
            odds = model.log_odds(embedding[some])
        preferred = torch.from_numpy(feedback_targets.preferred[i])
        rejected = torch.from_numpy(feedback_targets.rejected[i])
        pairs = (preferred != NO_PAIR).nonzero()[:, 0]
        apart = odds[pairs, preferred[pairs]] - odds[pairs, rejected[pairs]]
        for side in (preferred, rejected):
            odds[pairs, side[pairs]] = apart
            trust[pairs, side[pairs]] = torch.from_numpy(feedback_targets.trust[i])[pairs].to(trust.dtype)
        row, action = trust.nonzero(as_tuple=True)
        information = opinion_information(odds[row, action], noise=model.noise)
        seen.append(some[row])
        actions.append(action)
        weights.append(trust[row, action].double() * information)
    model.last_layer.fit(_with_one(embedding), torch.cat(seen), torch.cat(actions), torch.cat(weights))


def _split(
    experiences: Experiences, feedback_targets: FeedbackTargets, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows to train on, to calibrate with and to measure on. Held out are such as speak of the answer served."""
    spoken = feedback_targets.spoken_mask[np.arange(len(experiences)), experiences.action]
    order = torch.randperm(len(experiences), generator=generator)
    speaking = order[torch.from_numpy(spoken)[order]]
    held = len(speaking) // _HELD_OUT
    silent = order[~torch.from_numpy(spoken)[order]]
    return torch.cat([speaking[2 * held :], silent]), speaking[:held], speaking[held : 2 * held]

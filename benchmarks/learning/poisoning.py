"""Poisoned feedback: 5 % of the users always say the opposite, and one client sends 30 % of all events inverted: in its
own name, in 50 that it made up, in a new one for every thumb, or in two that were honest for 1,000 thumbs each.

A classifier of handwritten digits serves; for three of ten classes the users prefer another answer, and it learns them
from their thumbs. Three curves: no attack, the attackers are believed, the attackers meet the caps and the
quarantine of plaudit_models.evaluation.raters, in the order in which the learner uses them. And: can the client push a
bad candidate through the gate?

Notation:
    n: digits, a: 10 actions
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from benchmarks.learning import gate
from benchmarks.learning.gate import LABELS, N_ACTIONS, POOL, digits
from benchmarks.measure import Curve, Measure
from plaudit.compose.learner import head_builder
from plaudit.core.settings import Settings
from plaudit.learner.features.action_heads import FixedActions
from plaudit.learner.online.update import USER_SHARES
from plaudit_models.bandit.features import FeatureSpace, Float64, features
from plaudit_models.bandit.improvement import bounded_step, head_scores
from plaudit_models.bandit.policy import Bool, probabilities, sample
from plaudit_models.bandit.posterior import posterior
from plaudit_models.bandit.reward_model import RewardPrior, RewardState, empty_state, evidence_of_actions
from plaudit_models.evaluation.gate import GateRules
from plaudit_models.evaluation.ope import Int64, LoggedRounds
from plaudit_models.evaluation.raters import Raters, fair_cap

EVENTS: Final = 10_000
"""Enough for the curves to level out: a third fewer honest thumbs are a third slower, attack or not."""
BATCH: Final = 64
USERS: Final = 200
CLIENT_SHARE: Final = 0.3
WRONG_USERS: Final = 0.05
WRONG_THUMBS: Final = 0.05
LAST: Final = 2_000
"""Events at the end over which the curves are compared."""
CLIENT: Final = "client"
SYBILS: Final = 50
SLEEPERS: Final = 2
HONEST_THUMBS: Final = 1_000
USER_CAP: Final = Settings().learner.user_cap
MEASURABLE: Final = 0.01
"""Smallest loss of which a share can be measured: the curves' own noise is about a tenth of this."""


@dataclass(frozen=True, slots=True)
class Attack:
    """Attackers: one client, and users who always say the opposite.

    Attributes:
        client_share: share of the events that the client sends.
        wrong_users: share of the users who always say the opposite.
        client_ids: names that the client sends in, at random; 0: a new one for every thumb.
        honest_thumbs: thumbs in each of them that are honest, before all others are inverted.
    """

    client_share: float = 0.0
    wrong_users: float = 0.0
    client_ids: int = 1
    honest_thumbs: int = 0


Defence = Literal["none", "raters", "oracle"]
"""The oracle excludes the attackers from the start. Its loss is the missing thumbs, as without an attack."""

NO_ATTACK: Final = Attack()
ATTACKS: Final = {
    "both": Attack(CLIENT_SHARE, WRONG_USERS),
    "client": Attack(client_share=CLIENT_SHARE),
    "wrong users": Attack(wrong_users=WRONG_USERS),
    "Sybils": Attack(client_share=CLIENT_SHARE, client_ids=SYBILS),
    "fresh ids": Attack(client_share=CLIENT_SHARE, client_ids=0),
    "sleepers": Attack(client_share=CLIENT_SHARE, client_ids=SLEEPERS, honest_thumbs=HONEST_THUMBS),
}


def run(shuffles: int, quick: bool) -> list[Measure]:
    events, last = (640, 320) if quick else (EVENTS, LAST)

    def curve(attack: Attack, defence: Defence) -> Float64:
        """True satisfaction of honest users with what is served, per batch."""
        mean: Float64 = np.mean([stream(attack, seed, events, defence) for seed in range(shuffles)], axis=0)
        return mean

    clean = curve(NO_ATTACK, "none")
    n_last = last // BATCH
    top = float(clean[-n_last:].mean())
    measures = [_curve("clean, undefended", clean, n_last)]
    for name, attack in ATTACKS.items():
        undefended, defended, oracle = (curve(attack, d) for d in ("none", "raters", "oracle"))
        lost, left, missing = (top - float(c[-n_last:].mean()) for c in (undefended, defended, oracle))
        measures += [_curve(f"{name}, undefended", undefended, n_last), _curve(f"{name}, defended", defended, n_last)]
        note = f"{shuffles} shuffles; of {lost:.4f} lost, {left:.4f} is left, {missing:.4f} with an oracle"
        if lost >= MEASURABLE:
            measures.append(Measure(f"{name}: share of the loss recovered", (lost - left) / lost, goal=0.9, note=note))
            note = "it knows the attackers and never hears them; the rest is thumbs that were not given"
            measures.append(Measure(f"{name}: share that an oracle recovers", (lost - missing) / lost, note=note))
        else:
            measures.append(Measure(f"{name}: loss left", left, goal=MEASURABLE, direction="at_most", note=note))
    defended_clean = curve(NO_ATTACK, "raters")
    cost = top - float(defended_clean[-n_last:].mean())
    measures.append(Measure("cost of the defence without an attack", cost, goal=0.01, direction="at_most"))
    replicates = 10 if quick else gate.REPLICATES
    for user_cap, goal in ((gate.RULES.user_cap, 0.02), (1.0, None)):
        promoted = [poisoned_verdict(replicate, user_cap) == "promote" for replicate in range(replicates)]
        measures.append(
            Measure(
                f"bad candidate promoted by the client's thumbs, cap {user_cap:g}",
                sum(promoted) / replicates,
                goal=goal,
                direction="at_most",
                note=f"{replicates} logs; -3 points; a client with 30 % of the events praises what it prefers",
            )
        )
    return measures


def _curve(name: str, satisfaction: Float64, n_last: int) -> Measure:
    x = tuple(float(BATCH * (i + 1)) for i in range(len(satisfaction)))
    y = tuple(np.convolve(satisfaction, np.ones(8) / 8.0, mode="same").tolist())
    return Measure(name, float(satisfaction[-n_last:].mean()), curve=Curve(x, y, "events", "satisfaction"))


# --- the stream ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Learned:
    """State of the learner: sums, raters, and the latest rewards of each user."""

    state: RewardState
    raters: Raters = field(default_factory=Raters)
    said: dict[str, list[tuple[int, int, float]]] = field(default_factory=dict)


def stream(attack: Attack, seed: int, events: int, defence: Defence) -> Float64:
    """Probability that an honest user likes what is served, mean of each batch."""
    rng = np.random.default_rng([13, seed])
    pixels, base_logits = digits().pixels[POOL:], digits().logits(slice(0, LABELS))
    target, wanted = digits().served_target, np.arange(N_ACTIONS)
    shifted = rng.permutation(N_ACTIONS)[:3]
    wanted[shifted] = (shifted + rng.integers(1, N_ACTIONS, 3)) % N_ACTIONS
    builder = head_builder(Settings())
    space = FeatureSpace("digits", N_ACTIONS, pixels.shape[1], builder.embedding_features, builder.exclusivity)
    phi = features(space, pixels, base_logits)
    learned, served = _Learned(empty_state(space)), empty_state(space)
    satisfaction, recent, crowd = [], np.zeros(0, np.int64), _Crowd(attack)
    for _ in range(events // BATCH):
        digit = rng.integers(0, len(target), BATCH)
        scores = head_scores(builder.settings, served, pixels[digit], base_logits[digit])
        probs = probabilities(scores, np.ones(scores.shape, np.bool_), builder.floor)
        action = sample(probs, rng.random(BATCH))
        right = wanted[target[digit]]
        satisfaction.append(float(probs[np.arange(BATCH), right].mean()))
        users, inverts = crowd.draw(rng)
        up = (action == right) ^ (rng.random(BATCH) < WRONG_THUMBS) ^ inverts
        heard = ~inverts if defence == "oracle" else np.ones(BATCH, np.bool_)
        _learn(
            learned,
            builder.settings.prior,
            phi,
            digit[heard],
            action[heard],
            up[heard].astype(np.float64),
            [user for user, is_heard in zip(users, heard, strict=True) if is_heard],
            defended=defence == "raters",
        )
        recent = np.concatenate([recent, digit])[-FixedActions.RECENT :]
        served = bounded_step(
            builder.settings,
            served,
            learned.state,
            pixels[recent],
            base_logits[recent],
            floor=builder.floor,
            max_kl=builder.max_kl,
        ).state
    return np.array(satisfaction)


@dataclass(slots=True)
class _Crowd:
    """Users, honest and not; ``thumbs`` counts those in each of the client's names."""

    attack: Attack
    thumbs: Counter[str] = field(default_factory=Counter)

    def draw(self, rng: np.random.Generator) -> tuple[list[str], Bool]:
        """Users of the next batch, and a mask, True where their thumbs are inverted, shape ``[BATCH]``."""
        number = rng.integers(0, USERS, BATCH)
        of_client = rng.random(BATCH) < self.attack.client_share
        users = [f"user {u}" for u in number]
        inverts = number < self.attack.wrong_users * USERS
        for i in np.flatnonzero(of_client):
            ids = self.attack.client_ids
            users[i] = f"{CLIENT} {rng.integers(ids) if ids else self.thumbs.total()}"
            self.thumbs[users[i]] += 1
            inverts[i] = self.thumbs[users[i]] > self.attack.honest_thumbs
        return users, inverts


def _learn(
    learned: _Learned,
    prior: RewardPrior,
    phi: Float64,
    digit: Int64,
    action: Int64,
    reward: Float64,
    users: list[str],
    *,
    defended: bool,
) -> None:
    space = learned.state.space
    counts = np.ones(len(users), np.bool_)
    if defended:
        n_users = len(learned.raters.users.keys() | set(users))
        counts, learned.raters = learned.raters.admit(users, fair_cap(USER_CAP, n_users, USER_SHARES))
        belief = posterior(learned.state, prior)
        rows = np.flatnonzero([learned.raters[user].trust_level != "quarantined" for user in users])
        q, variance = belief.predict(phi[digit[rows]])
        known = 1.0 - variance / belief.prior_variance(phi[digit[rows]])
        at = np.arange(len(rows)), action[rows]
        learned.raters, caught = learned.raters.observe(
            [users[i] for i in rows], reward[rows], q[at], np.clip(known[at], 0.0, 1.0)
        )
        for user in caught:
            what = learned.said.pop(user, [])
            if what:
                d, a, r = (np.array(column) for column in zip(*what, strict=True))
                learned.state = learned.state.subtract(evidence_of_actions(space, phi[d], a, r))
            counts &= np.array([u != user for u in users])
    rows = np.flatnonzero(counts)
    for i in rows:
        learned.said.setdefault(users[i], []).append((int(digit[i]), int(action[i]), float(reward[i])))
    learned.state = learned.state.add(evidence_of_actions(space, phi[digit[rows]], action[rows], reward[rows]))


# --- the gate --------------------------------------------------------------------------------------------------------


def poisoned_verdict(replicate: int, user_cap: float) -> str:
    """Verdict on a candidate that is worse by 3 points; the client likes only what it answers more often than live."""
    world = gate.world("full retrain", -0.03)
    rng = np.random.default_rng([17, replicate])
    logged = gate.serve(world, rng, gate.LAST)
    of_client = rng.random(gate.LAST) < CLIENT_SHARE
    likes = world.candidate[logged.digit, logged.log.action] > world.live[logged.digit, logged.log.action]
    reward = np.where(of_client, likes.astype(np.float64), logged.log.reward)
    users = tuple(CLIENT if c else u for c, u in zip(of_client, logged.users, strict=True))
    poisoned = gate.Log(logged.digit, LoggedRounds(reward, logged.log.action, logged.log.pscore), users)
    return gate.look_through(world, poisoned, GateRules(user_cap=user_cap)).verdict

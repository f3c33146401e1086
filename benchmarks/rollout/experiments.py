"""Experiments in accelerated time: the learner's own functions, users who are drawn, two services that report.

A version that users like 10 points less, and one that they like as much, each behind a 10 % canary at 50 feedback/s.
Each user has a probability of a thumb up of their own, drawn around 80 %.
Users judge the version that served them, whatever it answered. First only the draw of the user is known of an
answer, then also its probability under either version, as the learner knows where both can be asked: two policies of
four answers, most of whose weight lies on different ones, as those of the experiments over running services.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Final

import numpy as np

from benchmarks.measure import Measure
from plaudit.core.events import Answers, ExperimentReport
from plaudit.core.experience import DecisionHeader, Experience, Label
from plaudit.core.rollout import Change, Rollout, in_experiment, promote, start_canary
from plaudit.learner.evaluation.experiment import Experiment, ExperimentRules, add_experiences, add_report, decide
from plaudit_models.bandit.features import Float64
from plaudit_models.evaluation.guards import BUCKETS, bucket, new_guards
from plaudit_models.evaluation.two_arm_test import Propensities, new_two_arm_test

SHARE: Final = 0.1
FEEDBACK_PER_S: Final = 50
LIKED: Final = 0.8
SPREAD: Final = 0.1
"""Standard deviation of the users' probabilities of a thumb up."""
USERS: Final = 2_000
REPLICAS: Final = 2
WORSE: Final = 0.10
WITHIN_S: Final = 120.0
POLICIES: Final = np.array([[0.54, 0.42, 0.02, 0.02], [0.07, 0.01, 0.32, 0.60]])
"""Probability of each answer under live and under the candidate."""
ERRORS: Final = 0.005
"""Share of the answers that fail, of either version."""


def an_experiment(rules: ExperimentRules) -> tuple[Experiment, Rollout]:
    """Experiment with version 2 beside version 1, before any feedback."""
    change = Change("bench", 0.0, "")
    rollout = start_canary(promote(Rollout("bench"), 1, change), 2, SHARE, change)
    experiment = Experiment(
        version=2,
        generation=rollout.experiment,
        share=SHARE,
        kind="canary",
        actor="bench",
        started_at_s=0.0,
        position=0,
        evidence=new_two_arm_test(rules.over_all(SHARE)),
        guards=new_guards(rules.guards(SHARE)),
    )
    return experiment, rollout


def run_once(seed: int, worse: float, rules: ExperimentRules, *, with_propensities: bool = False) -> tuple[str, float]:
    """Verdict of one experiment, and the seconds until it.

    Args:
        with_propensities: whether the probabilities of answers under both versions are known.
    """
    rng = np.random.default_rng(seed)
    experiment, rollout = an_experiment(rules)
    rollout = replace(rollout, model=f"bench {seed}")  # another draw of the users
    users = [f"user {number}" for number in range(USERS)]
    liked = thumb_up_probabilities(rng)
    upto = POLICIES.cumsum(axis=1)[:, :-1]
    number = 0
    for second in range(1, 100_000):
        rows = []
        arms = {1: [0] * BUCKETS, 2: [0] * BUCKETS}
        failed = {1: 0, 2: 0}
        for index in rng.integers(USERS, size=FEEDBACK_PER_S).tolist():
            version = 2 if in_experiment(rollout, users[index]) else 1
            if rng.random() < ERRORS:
                failed[version] += 1
                continue
            number += 1
            up = rng.random() < liked[index] - (worse if version == 2 else 0.0)
            arms[version][bucket(0.008 * rng.lognormal(0.0, 0.4))] += 1
            action = int(np.searchsorted(upto[version - 1], rng.random(), side="right"))
            rows.append(_experience(number, users[index], version, up, float(second), action))
        experiment = add_experiences(
            experiment, rows, rollout, rules, USERS, _propensities if with_propensities else _unknown
        )
        report = ExperimentReport(
            replica=f"replica {second % REPLICAS}",
            number=second,
            model=rollout.model,
            experiment=rollout.experiment,
            version=2,
            time_s=float(second),
            live=Answers(failed[1], tuple(arms[1])),
            candidate=Answers(failed[2], tuple(arms[2])),
        )
        experiment = decide(add_report(experiment, report), rules)
        if experiment.verdict is not None:
            return experiment.verdict, float(second)
    raise AssertionError("an experiment ends after max_events")


def thumb_up_probabilities(rng: np.random.Generator) -> Float64:
    """Probability of a thumb up of each user for answers of live, shape ``[USERS]``."""
    return np.clip(rng.normal(LIKED, SPREAD, USERS), 0.0, 1.0)


def _propensities(rows: Sequence[Experience]) -> Propensities:
    live, candidate = POLICIES[:, [int(row.decision.action) for row in rows]]
    return Propensities(candidate, live)


def _unknown(rows: Sequence[Experience]) -> None:
    return None


def _experience(number: int, user: str, version: int, up: bool, time_s: float, action: int) -> Experience:
    served = DecisionHeader(
        prediction_id=f"p{number}",
        time_s=time_s,
        user_id=user,
        version=version,
        action=str(action),
        propensity=1.0,
        allowed_actions=(),
        greedy=False,
        modalities=("image", "text") if number % 3 else ("text",),
    )
    return Experience(number, served, Label({str(action): float(up)}, 1.0), probabilities=(1.0,))


def run(*, quick: bool) -> list[Measure]:
    times = 10 if quick else 100
    rules = ExperimentRules(max_events=20_000)
    measures: list[Measure] = []
    with ProcessPoolExecutor() as pool:
        for known, title in ((False, "draws known"), (True, "propensities known")):
            go = partial(run_once, rules=rules, with_propensities=known)
            worse = list(pool.map(go, range(times), repeat(WORSE)))
            equal = list(pool.map(go, range(1_000, 1_000 + times), repeat(0.0)))
            measures += _measures(worse, equal, title)
    return measures


def _measures(worse: list[tuple[str, float]], equal: list[tuple[str, float]], title: str) -> list[Measure]:
    times = len(worse)
    back_s = sorted(after_s for verdict, after_s in worse if verdict == "reject")
    in_time = sum(verdict == "reject" and after_s <= WITHIN_S for verdict, after_s in worse)
    note = f"of {times} runs, 10 % canary, {FEEDBACK_PER_S} feedback/s, {USERS} users"
    return [
        Measure(
            f"{title}: worse by 10 points, rolled back within 2 minutes", 100 * in_time / times, 95, note=note, unit="%"
        ),
        Measure(f"{title}: time until then, median", _quantile(back_s, times, 0.5), unit="s"),
        Measure(f"{title}: time until then, 95 % of the runs", _quantile(back_s, times, 0.95), unit="s"),
        Measure(
            f"{title}: equal, rolled back for harm",
            100 * sum(verdict == "reject" for verdict, _ in equal) / times,
            5,
            "at_most",
            note=f"of {times} runs until 20,000 feedback",
            unit="%",
        ),
        Measure(f"{title}: equal, promoted", 100 * sum(verdict == "promote" for verdict, _ in equal) / times, unit="%"),
    ]


def _quantile(back_s: list[float], times: int, share: float) -> float:
    """Quantile of the times; runs that are never rolled back count as infinitely late."""
    place = int(np.ceil(share * times)) - 1
    return back_s[place] if place < len(back_s) else float("inf")

"""The demo's figures as pure functions of what was observed.

Knows nothing about servers, terminals or files.

``answers`` are everywhere in the order in which their thumbs became durable.

Notation:
    n: examples, a: number of actions
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from plaudit.core.rollout import Rollout
from plaudit.demo.task import LABELLED_KINDS, NEW_KIND, Kind
from plaudit_models.bundle import VersionKind

SHIFTED_KIND: Final[Kind] = "add"
UNCHANGED_KINDS: Final = tuple(kind for kind in LABELLED_KINDS if kind != SHIFTED_KIND)

SHIFT_TARGET: Final = 0.75
SHIFT_THUMBS: Final = 4_000
"""Thumbs (on all kinds) within which users should be satisfied with sums again."""
NEW_KIND_TARGET: Final = 0.80
NEW_KIND_THUMBS: Final = 8_000

TRAFFIC_WINDOW: Final = 200
"""Answers of one kind that a satisfaction measured on the traffic is averaged over."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered request of the traffic, as its user saw it. Times are UTC seconds since the epoch.

    Attributes:
        number: position in the stream of requests, from 0.
        liked: whether the user liked the answer; the thumb is wrong now and then.
        thumb_up: the thumb given.
        acknowledged_s: time at which the thumb was durable.
        by_candidate: the candidate of an experiment answered.
    """

    number: int
    kind: Kind
    action: str
    liked: bool
    thumb_up: bool
    version: int
    version_digest: str
    feedback_id: str
    asked_s: float
    answered_s: float
    acknowledged_s: float
    by_candidate: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that gave no result; ``call`` is its name."""

    number: int
    call: Literal["Predict", "SendFeedback"]
    problem: str


@dataclass(frozen=True, slots=True)
class RefreshedHead:
    """A head refresh, and the thumb that completed the last batch it learned from.

    Attributes:
        thumbs: number of thumbs it learned from.
        feedback_id: id of the last of them.
    """

    version: int
    thumbs: int
    feedback_id: str


Satisfaction = Mapping[Kind, float]
"""Probability that the user likes the answer, by kind of question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """Data that the report is made from.

    Attributes:
        answers, failures: of the whole traffic.
        satisfaction: on held-out inputs, with the probabilities that the version served, by version: ``baseline`` and
            every version that answered.
        baseline: the version that pre-training made.
        digests: by version, of every version that was published.
        kinds: how each version was made.
        refreshed_heads: of the learner.
        verdicts: of the gate, on each fine-tuned version.
        accuracy, without: of the baseline after pre-training: per kind, and with each modality withheld.
        cut_short: versions whose training its time limit ended.
        timeline: time (UTC seconds) and version of each change of the live version, oldest first; the first is before
            the traffic.
        duration_s: of the whole demo.
    """

    answers: Sequence[Answer]
    failures: Sequence[Failure]
    satisfaction: Mapping[int, Satisfaction]
    baseline: int
    digests: Mapping[int, str]
    kinds: Mapping[int, VersionKind]
    refreshed_heads: Sequence[RefreshedHead]
    verdicts: Sequence[str]
    accuracy: Mapping[str, float]
    without: Mapping[str, Mapping[str, float]]
    cut_short: Sequence[int]
    timeline: Sequence[tuple[float, int]]
    duration_s: float


def summarise(observed: Observations) -> dict[str, Any]:
    """Content of summary.json: shares in [0, 1], times in seconds; null where there is nothing to measure."""
    answers, satisfaction = observed.answers, observed.satisfaction
    points, version, kind = worst_drop(satisfaction, observed.baseline)
    fresh_s = freshness_s(answers, observed.refreshed_heads)
    latencies_s = [answer.answered_s - answer.asked_s for answer in answers]
    served = first_answers(answers)
    return {
        "pretrain": {"accuracy": dict(observed.accuracy), "without": {k: dict(v) for k, v in observed.without.items()}},
        "shift": _change(observed, SHIFTED_KIND, SHIFT_TARGET, SHIFT_THUMBS),
        "new_kind": _change(observed, NEW_KIND, NEW_KIND_TARGET, NEW_KIND_THUMBS),
        "unchanged": {"worst_drop_points": points, "version": version, "kind": kind},
        "requests": {
            # Every answer was two calls that succeeded; a failure was one, or the second after one that succeeded.
            "total": 2 * len(answers)
            + len(observed.failures)
            + sum(f.call == "SendFeedback" for f in observed.failures),
            "failed": len(observed.failures),
            "problems": sorted({failure.problem for failure in observed.failures}),
        },
        "answers_of_unknown_version": len(mismatched(answers, observed.digests)),
        "swaps": len(observed.timeline) - 1,
        "versions_served": {
            made: sum(observed.kinds[v] == made for v in served) for made in sorted(set(observed.kinds.values()))
        },
        "gate": dict(Counter(observed.verdicts)),
        "freshness_s": {"p50": percentile(fresh_s, 50), "p95": percentile(fresh_s, 95), "versions": len(fresh_s)},
        "latency_s": {"p50": percentile(latencies_s, 50), "p95": percentile(latencies_s, 95)},
        "trainings_cut_short": list(observed.cut_short),
        "thumbs": len(answers),
        "duration_s": observed.duration_s,
    }


def _change(observed: Observations, kind: Kind, target: float, thumbs: int) -> dict[str, Any]:
    """Change of satisfaction with ``kind`` over the first ``thumbs`` thumbs, on held-out inputs and on the traffic."""
    thumbs = min(thumbs, len(observed.answers))
    first, last = traffic_satisfaction(observed.answers[:thumbs], kind)
    return {
        "before": observed.satisfaction[observed.baseline][kind],
        "after": observed.satisfaction[version_after(observed.answers, thumbs)][kind],
        "thumbs": thumbs,
        "reached_after_thumbs": reached_after(observed.answers, observed.satisfaction, kind, target),
        "traffic_before": first,
        "traffic_after": last,
    }


def expected_satisfaction(
    probabilities: npt.NDArray[np.float64], likes: npt.NDArray[np.bool_], kinds: Sequence[Kind]
) -> Satisfaction:
    """Mean over each kind's examples of Σₐ π(a | x)·likes(x, a).

    Args:
        probabilities: ``[n, a]``, as they would be served, exploration included.
        likes: ``[n, a]``, True where the user likes action a.
        kinds: ``n`` names.
    """
    pleased, names = (probabilities * likes).sum(axis=1), np.array(kinds)
    return {kind: float(pleased[names == kind].mean()) for kind in dict.fromkeys(kinds)}


def thumbs_at(answers: Sequence[Answer], time_s: float) -> int:
    """Number of thumbs that were durable at ``time_s``."""
    return bisect_right(answers, time_s, key=lambda answer: answer.acknowledged_s)


def first_answers(answers: Sequence[Answer]) -> dict[int, float]:
    """Time of the first answer by version, in that order."""
    first: dict[int, float] = {}
    for answer in sorted(answers, key=lambda a: a.answered_s):
        first.setdefault(answer.version, answer.answered_s)
    return first


def version_after(answers: Sequence[Answer], thumbs: int) -> int:
    """Live version that answered last when ``thumbs`` thumbs were durable (or all, if there were fewer)."""
    until_s = answers[min(thumbs, len(answers)) - 1].acknowledged_s
    by_then = (a for a in answers if a.answered_s <= until_s and not a.by_candidate)
    return max(by_then, key=lambda a: a.answered_s).version


def reached_after(
    answers: Sequence[Answer], satisfaction: Mapping[int, Satisfaction], kind: Kind, target: float
) -> int | None:
    """Number of thumbs before the first answer of the first live version whose satisfaction is at least ``target``."""
    for version, first_s in first_answers([a for a in answers if not a.by_candidate]).items():
        if satisfaction[version][kind] >= target:
            return thumbs_at(answers, first_s)
    return None


def worst_drop(satisfaction: Mapping[int, Satisfaction], baseline: int) -> tuple[float, int, Kind]:
    """Largest loss of satisfaction among the unchanged kinds in any version, in points, with its version and kind.

    Never negative: the baseline itself has lost nothing.
    """
    drops = [
        (100 * (satisfaction[baseline][kind] - by_kind[kind]), version, kind)
        for version, by_kind in satisfaction.items()
        for kind in UNCHANGED_KINDS
    ]
    return max(drops, key=lambda drop: drop[0])


def freshness_s(answers: Sequence[Answer], learned: Sequence[RefreshedHead]) -> list[float]:
    """Seconds, for each head refresh, from the thumb that completed its batch to the first answer that learned from it.

    The answer may come from that version or from a later one that learned from at least as much; a version whose
    thumb no answer had learned from before the traffic ended is left out.
    """
    acknowledged_s = {answer.feedback_id: answer.acknowledged_s for answer in answers}
    first_s = first_answers(answers)
    ages = []
    for each in learned:
        came_s = [first_s[v.version] for v in learned if v.thumbs >= each.thumbs and v.version in first_s]
        if came_s and each.feedback_id in acknowledged_s:
            ages.append(min(came_s) - acknowledged_s[each.feedback_id])
    return ages


def timeline(ledger: Sequence[Rollout], until_s: float) -> list[tuple[float, int]]:
    """Time and version of each change of the live version up to ``until_s``."""
    lives = [(r.changed_at_s, r.live) for r in ledger if r.live is not None and r.changed_at_s <= until_s]
    return [lives[i] for i in range(len(lives)) if i == 0 or lives[i][1] != lives[i - 1][1]]


def mismatched(answers: Sequence[Answer], digests: Mapping[int, str]) -> list[Answer]:
    """Answers whose version and digest are not a pair that the registry knows."""
    return [answer for answer in answers if digests.get(answer.version) != answer.version_digest]


def moving_satisfaction(
    answers: Sequence[Answer], kind: Kind, window: int = TRAFFIC_WINDOW
) -> tuple[list[int], list[float]]:
    """Satisfaction on the traffic: number of thumbs, and share liked of the last ``window`` answers of ``kind``.

    Begins with the first full quarter of a window.
    """
    thumbs, shares, liked = [], [], []
    for position, answer in enumerate(answers, start=1):
        if answer.kind == kind:
            liked.append(answer.liked)
            if len(liked) >= window // 4:
                thumbs.append(position)
                shares.append(sum(liked[-window:]) / len(liked[-window:]))
    return thumbs, shares


def traffic_satisfaction(answers: Sequence[Answer], kind: Kind, window: int = TRAFFIC_WINDOW) -> tuple[float, float]:
    """Shares liked of the first and of the last ``window`` answers of ``kind`` in the traffic; there must be some."""
    liked = [answer.liked for answer in answers if answer.kind == kind]
    first, last = liked[:window], liked[-window:]
    return sum(first) / len(first), sum(last) / len(last)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Percentile of ``values``, linear between neighbours; None if there are none."""
    return float(np.percentile(values, percent)) if values else None

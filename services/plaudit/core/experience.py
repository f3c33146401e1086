"""Decisions without their content, and experiences: decisions with the labels that users gave them.

Knows nothing about how they are joined (learner/ingest/join.py), stored (core/ports/store.py) or learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from plaudit.core.events import Decision


@dataclass(frozen=True, slots=True)
class DecisionHeader:
    """A decision without its content and features. Fields as in :class:`plaudit.core.events.Decision`.

    Attributes:
        modalities: names of the modalities in the request, sorted.
        dynamic_actions: ids of the dynamic actions of the request, in its order; empty: the action is one of the
        model's.
    """

    prediction_id: str
    time_s: float
    user_id: str
    version: int
    action: str
    propensity: float
    allowed_actions: tuple[str, ...]
    greedy: bool
    modalities: tuple[str, ...]
    user_group: str = ""
    dynamic_actions: tuple[str, ...] = ()

    @property
    def dynamic(self) -> bool:
        """Whether the action was picked from dynamic actions of the request."""
        return bool(self.dynamic_actions)


def header_of(decision: Decision) -> DecisionHeader:
    return DecisionHeader(
        prediction_id=decision.prediction_id,
        time_s=decision.time_s,
        user_id=decision.user_id,
        version=decision.version,
        action=decision.action,
        propensity=decision.propensity,
        allowed_actions=decision.allowed_actions,
        greedy=decision.greedy,
        modalities=tuple(sorted(decision.content)),
        user_group=decision.user_group,
        dynamic_actions=tuple([action.id for action in decision.dynamic_actions]),
    )


@dataclass(frozen=True, slots=True)
class RaterLabel:
    """Label of one decision according to one rater, the user who gave the feedback, whoever asked.

    Attributes:
        rater: id of the user; "" if unknown.
        rewards, weight, correction: as in :class:`Label`.
    """

    rater: str
    rewards: Mapping[str, float]
    weight: float
    correction: str | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """Label of one decision, from the feedback of all users together.

    Attributes:
        rewards: reward in [0, 1] by action: of the served one for a thumb, of all for a correction.
        weight: weight in (0, 1]; 1 is that of a thumb.
        correction: the right action according to all users who corrected; None if none did or they disagree.
        by_rater: what it is the mean of, a row per rater; empty: all of it is from the user who asked.
    """

    rewards: Mapping[str, float]
    weight: float
    correction: str | None = None
    by_rater: tuple[RaterLabel, ...] = ()


def mean_label(by_rater: Sequence[RaterLabel]) -> Label | None:
    """Label of a decision from those of its raters: the weighted mean per action; None of none."""
    if not by_rater:
        return None
    if len(by_rater) == 1:
        (only,) = by_rater
        return Label(only.rewards, only.weight, only.correction, (only,))
    rewards = {}
    for action in dict.fromkeys(action for each in by_rater for action in each.rewards):
        about = [each for each in by_rater if action in each.rewards]
        rewards[action] = sum(each.weight * each.rewards[action] for each in about) / sum(each.weight for each in about)
    corrections = {each.correction for each in by_rater if each.correction is not None}
    return Label(
        rewards=rewards,
        weight=sum(each.weight for each in by_rater) / len(by_rater),
        correction=corrections.pop() if len(corrections) == 1 else None,
        by_rater=tuple(by_rater),
    )


@dataclass(frozen=True, slots=True)
class Experience:
    """A decision joined with its feedback.

    Attributes:
        number: from 1 in the order in which decisions got their first label; it never changes.
        label: from all raters; None once all feedback was retracted.
        probabilities: probabilities of the actions under the version that served, in the order of its action set or of
            the dynamic actions; None if that version was removed before the first feedback.
        excluded: True: stored, but not learned from: it did harm, or cannot be learned.
        refused: raters whose labels are not learned from: they were over the cap, or are in quarantine.
        slice: contexts that it is followed with, such as those with the same base answer; "" before it is learned.
        outdated: True: from before users changed what they want of its slice, so that it counts no more.
    """

    number: int
    decision: DecisionHeader
    label: Label | None
    probabilities: tuple[float, ...] | None = None
    excluded: bool = False
    slice: str = ""
    outdated: bool = False
    refused: tuple[str, ...] = ()

    @property
    def by_rater(self) -> tuple[RaterLabel, ...]:
        """Label of each rater."""
        return rater_labels(self.label, self.decision.user_id)

    @property
    def heard_label(self) -> Label | None:
        """Label from the raters who are not refused; None if there are none."""
        if not self.refused:
            return self.label
        return mean_label([each for each in self.by_rater if each.rater not in self.refused])

    @property
    def heard_reward(self) -> float | None:
        """Reward of the served action from the raters who are not refused; None where it is excluded, or has none."""
        label = None if self.excluded else self.heard_label
        return None if label is None else label.rewards.get(self.decision.action)

    @property
    def counts(self) -> bool:
        """Whether it is learned from."""
        return not self.excluded and not self.outdated and self.heard_label is not None

    @property
    def reward(self) -> float | None:
        """Reward of the served action; None if the label has none."""
        return None if self.label is None else self.label.rewards.get(self.decision.action)


def rater_labels(label: Label | None, asker: str) -> tuple[RaterLabel, ...]:
    """Label of each rater; all of it is the asker's where no rater is named."""
    if label is None:
        return ()
    return label.by_rater or (RaterLabel(asker, label.rewards, label.weight, label.correction),)


class FeedbackState(StrEnum):
    """State of a piece of feedback in the store."""

    WAITING = "waiting"
    """Its decision has not arrived."""
    JOINED = "joined"
    DISCARDED = "discarded"

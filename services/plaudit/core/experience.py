"""Decisions without their content, and experiences: decisions with the labels that users gave them.

Knows nothing about how they are joined (learner/ingest/join.py), stored (core/ports/store.py) or learned.
"""

from __future__ import annotations

from collections.abc import Mapping
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
class Label:
    """Label of one decision, from the feedback of all users together.

    Attributes:
        rewards: reward in [0, 1] by action: of the served one for a thumb, of all for a correction.
        weight: weight in (0, 1]; 1 is that of a thumb.
        correction: the right action according to all users who corrected; None if none did or they disagree.
    """

    rewards: Mapping[str, float]
    weight: float
    correction: str | None = None


@dataclass(frozen=True, slots=True)
class Experience:
    """A decision joined with its feedback.

    Attributes:
        number: from 1 in the order in which decisions got their first label; it never changes.
        label: None once all feedback was retracted.
        probabilities: probabilities of the actions under the version that served, in the order of its action set or of
            the dynamic actions; None if that version was removed before the first feedback.
        excluded: True: stored, but not learned from: it did harm, or its user is over the cap or in quarantine.
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

    @property
    def counts(self) -> bool:
        """Whether it is learned from."""
        return self.label is not None and not self.excluded and not self.outdated

    @property
    def reward(self) -> float | None:
        """Reward of the served action; None if the label has none."""
        return None if self.label is None else self.label.rewards.get(self.decision.action)


class FeedbackState(StrEnum):
    """State of a piece of feedback in the store."""

    WAITING = "waiting"
    """Its decision has not arrived."""
    JOINED = "joined"
    DISCARDED = "discarded"

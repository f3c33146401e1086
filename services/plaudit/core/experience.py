"""What the learner keeps of a decision, and what it became once users spoke.

Knows nothing about how the two are joined (learner/join.py), where they are kept (ports.py) or how they are learned.
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
        modalities: names of the modalities that were given, sorted.
        dynamic_actions: ids of what the request listed to pick from, in its order; empty means the model's actions.
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
        dynamic_actions=tuple(candidate.id for candidate in decision.dynamic_actions),
    )


@dataclass(frozen=True, slots=True)
class Label:
    """What all users together say about one decision.

    Attributes:
        rewards: reward in [0, 1] of every action they speak of: the served one for a thumb, all for a correction.
        weight: in (0, 1], how much it counts; 1 is one plain thumb.
        correction: the action that all users who corrected call right; None if none did or they disagree.
    """

    rewards: Mapping[str, float]
    weight: float
    correction: str | None = None


@dataclass(frozen=True, slots=True)
class Experience:
    """A decision joined with its feedback.

    Attributes:
        number: from 1 in the order in which decisions were first judged; it never changes.
        label: None once everything said was taken back.
        probabilities: with which the version that served would have picked each action, in the order of its action
            set or of the dynamic actions; None if that version was gone before anybody spoke.
        excluded: kept, but not learned from: what was learned from it did harm, or its user has had his share.
    """

    number: int
    decision: DecisionHeader
    label: Label | None
    probabilities: tuple[float, ...] | None = None
    excluded: bool = False

    @property
    def reward(self) -> float | None:
        """Reward of the action that was served; None if nothing was said about it."""
        return None if self.label is None else self.label.rewards.get(self.decision.action)


class FeedbackState(StrEnum):
    """What became of a piece of feedback."""

    WAITING = "waiting"
    """Its decision has not arrived."""
    JOINED = "joined"
    DISCARDED = "discarded"

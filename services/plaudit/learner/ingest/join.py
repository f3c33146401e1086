"""The join: one decision and all feedback about it → at most one label. Pure, and the only place with these rules.

- The result depends on the *set* of feedback alone, never on the order or number of its deliveries: signals are put in
  order by when the server received them, then by id.
- A user's last explicit signal (thumb, rating, correction, preference) is that user's verdict. Where there is none, the
  last implicit one is: actions of a user are weaker evidence than explicit feedback, whichever came later.
- Several users: their verdicts are averaged per action.
- A retraction removes all earlier feedback of its own user; with an id, exactly that piece, whenever it arrives.
- A decision without feedback has no label, except where silence is given a reward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from plaudit.core.events import Correction, Feedback, Implicit, ImplicitKind, Preference, Rating, Retract, Thumb
from plaudit.core.experience import DecisionHeader, Label, RaterLabel, mean_label
from plaudit_models.bandit.reward_model import PREFERRED_REWARD, REJECTED_REWARD

EXPLICIT_WEIGHT: Final = 1.0
IMPLICIT_WEIGHT: Final = 0.25
SILENCE_WEIGHT: Final = 0.1
IMPLICIT_REWARDS: Final[Mapping[ImplicitKind, float]] = {
    # People ask again after a wrong answer, but also after a right one that they want more of.
    ImplicitKind.REPHRASED: 0.1,
    # People interrupt a wrong answer, but also a right one that they have heard enough of.
    ImplicitKind.INTERRUPTED: 0.3,
    ImplicitKind.ACCEPTED: 0.9,
}


def join(decision: DecisionHeader, feedback: Sequence[Feedback], actions: Sequence[str]) -> Label | None:
    """Label of the decision from all feedback about it; None if all is retracted.

    Args:
        feedback: all feedback about it, in any order; each id once; none that :func:`refusal` refuses.
        actions: actions of the model; where the request had dynamic actions, those are used instead.
    """
    actions = decision.dynamic_actions or actions
    if len(feedback) == 1 and not isinstance(feedback[0].signal, Retract):  # nearly always
        last = list(feedback)
    else:
        last = [pieces[-1] for pieces in map(_explicit_first, _by_user(feedback).values())]
    return mean_label([_among(actions, _verdict(decision, each, actions)) for each in last])


def _among(actions: Sequence[str], verdict: RaterLabel) -> RaterLabel:
    """The verdict on those that are still actions."""
    if verdict.correction is not None or all(action in actions for action in verdict.rewards):
        return verdict
    return replace(verdict, rewards={a: reward for a, reward in verdict.rewards.items() if a in actions})


def silence(decision: DecisionHeader, reward: float) -> Label:
    """Label of a decision without feedback: the asker's, who said nothing."""
    return Label(rewards={decision.action: reward}, weight=SILENCE_WEIGHT)


def refusal(decision: DecisionHeader, feedback: Feedback, actions: Sequence[str]) -> str | None:
    """Why a piece of feedback cannot be learned from, in one sentence; None if it can.

    ``actions`` as in :func:`join`.
    """
    match feedback.signal:
        case Correction(action):
            named = [("correction", action)]
        case Preference(preferred, rejected):
            if preferred == rejected:
                return f"preference: {preferred!r} cannot be better than itself"
            named = [("preference.preferred", preferred), ("preference.rejected", rejected)]
        case Thumb() | Rating() | Implicit():
            named = [("action", decision.action)]
        case Retract():
            named = []
    for field, action in named:
        if decision.dynamic_actions and action not in decision.dynamic_actions:
            return (
                f"{field}: {action!r} is not one of the {len(decision.dynamic_actions)} dynamic actions of the request"
            )
        if not decision.dynamic_actions and action not in actions:
            return f"{field}: {action!r} is not, or no longer, in the action set"
    return None


def _by_user(feedback: Iterable[Feedback]) -> Mapping[str, Sequence[Feedback]]:
    """Signals that are not retracted, per user, oldest first."""
    ordered = sorted(feedback, key=lambda f: (f.time_s, f.feedback_id))
    retracted = {
        (f.user_id, f.signal.feedback_id) for f in ordered if isinstance(f.signal, Retract) and f.signal.feedback_id
    }
    left: dict[str, list[Feedback]] = defaultdict(list)
    for f in ordered:
        if isinstance(f.signal, Retract):
            if not f.signal.feedback_id:
                left.pop(f.user_id, None)
        elif (f.user_id, f.feedback_id) not in retracted:
            left[f.user_id].append(f)
    return left


def _explicit_first(pieces: Sequence[Feedback]) -> Sequence[Feedback]:
    """The explicit pieces of one user's feedback; all of them if there are none."""
    return [f for f in pieces if not isinstance(f.signal, Implicit)] or pieces


def _verdict(decision: DecisionHeader, feedback: Feedback, actions: Sequence[str]) -> RaterLabel:
    user = feedback.user_id
    match feedback.signal:
        case Thumb(up):
            return RaterLabel(user, {decision.action: float(up)}, EXPLICIT_WEIGHT)
        case Rating(value):
            return RaterLabel(user, {decision.action: value}, EXPLICIT_WEIGHT)
        case Correction(right):
            return RaterLabel(
                user, {action: float(action == right) for action in actions}, EXPLICIT_WEIGHT, correction=right
            )
        case Preference(preferred, rejected):
            return RaterLabel(user, {preferred: PREFERRED_REWARD, rejected: REJECTED_REWARD}, EXPLICIT_WEIGHT)
        case Implicit(kind):
            return RaterLabel(user, {decision.action: IMPLICIT_REWARDS[kind]}, IMPLICIT_WEIGHT)
        case Retract():
            raise ValueError("a retraction is no verdict")

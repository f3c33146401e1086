"""From records of the log to what they change: new decisions, feedback with its fate, experiences before and after.

Pure but for reading the store. Each prediction id and each feedback id counts once, however often it is delivered.
Knows nothing about rewards models, versions or when to save.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from plaudit.core.events import DeadLetter, Decision, Features, Feedback
from plaudit.core.experience import Experience, FeedbackState, Judgement, Served, served
from plaudit.core.ports import ExperienceStore, History, Kept, Poison, Record
from plaudit.core.wire import encode_event
from plaudit.learner.join import join, refusal

_E = TypeVar("_E", Decision, Feedback)


@dataclass(slots=True)
class Read:
    """What a batch of records holds that was never seen before.

    Attributes:
        decisions, feedback: by their ids.
        histories: what the store has of every prediction that these speak of, by prediction id.
        dead_letters: records that cannot be used, with the reason.
        outcomes: how many records had which fate: decision, feedback, duplicate, foreign (of another model), poison.
    """

    decisions: dict[str, Decision] = field(default_factory=dict)
    feedback: dict[str, Feedback] = field(default_factory=dict)
    histories: Mapping[str, History] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Change:
    """One experience before and after a step; ``before`` is None when it is new."""

    before: Experience | None
    after: Experience

    @property
    def subtracts(self) -> Judgement | None:
        """What the reward state must forget."""
        return None if self.before is None or self.before.set_aside else self.before.judgement

    @property
    def adds(self) -> Judgement | None:
        """What the reward state must learn."""
        return None if self.after.set_aside else self.after.judgement


@dataclass(frozen=True, slots=True)
class Joined:
    """What new decisions and feedback amount to.

    Attributes:
        changes: of experiences.
        feedback: with a new fate.
        waiting: how many more pieces of feedback wait for their decision than before.
        discarded: how many more were discarded.
    """

    changes: Sequence[Change]
    feedback: Sequence[Kept] = ()
    waiting: int = 0
    discarded: int = 0


def read(records: Sequence[Record], store: ExperienceStore, model: str, now_s: float) -> Read:
    """Sort the records; leave out what the store already has."""
    batch = Read()
    for record in records:
        match record.event:
            case Poison(payload, problem):
                _bury(batch, record, problem, payload, now_s)
            case Decision() as decision if decision.model != model:
                batch.outcomes["foreign"] += 1
            case Decision() as decision if decision.features is not None and not _finite(decision.features):
                problem = "features: hold a value that is not finite"
                _bury(batch, record, problem, encode_event(decision), now_s)
            case Decision() as decision:
                _first(batch, batch.decisions, decision.prediction_id, decision)
            case Feedback() as feedback:
                _first(batch, batch.feedback, feedback.feedback_id, feedback)
            case _:
                batch.outcomes["foreign"] += 1
    batch.histories = store.histories(
        list(dict.fromkeys((*batch.decisions, *(f.prediction_id for f in batch.feedback.values()))))
    )
    for id_ in [id_ for id_ in batch.decisions if batch.histories[id_].served is not None]:
        del batch.decisions[id_]
        batch.outcomes["duplicate"] += 1
    for id_ in store.feedback(list(batch.feedback)):
        del batch.feedback[id_]
        batch.outcomes["duplicate"] += 1
    batch.outcomes["decision"] += len(batch.decisions)
    batch.outcomes["feedback"] += len(batch.feedback)
    return batch


def join_all(batch: Read, actions: Sequence[str], last_number: int) -> Joined:
    """Judge every prediction that the batch speaks of anew.

    Args:
        batch: what is new.
        actions: the action set.
        last_number: number of the last experience there is.
    """
    said: dict[str, list[Feedback]] = {}
    for feedback in batch.feedback.values():
        said.setdefault(feedback.prediction_id, []).append(feedback)
    changes: list[Change] = []
    fates: list[Kept] = []
    waiting = 0
    for id_ in dict.fromkeys((*batch.decisions, *said)):
        history = batch.histories[id_]
        decision = served(batch.decisions[id_]) if id_ in batch.decisions else history.served
        fresh = [Kept(feedback, FeedbackState.WAITING) for feedback in said.get(id_, ())]
        if decision is None:
            fates += fresh
            waiting += len(fresh)
            continue
        waiting -= sum(kept.state == FeedbackState.WAITING for kept in history.feedback)
        judged = [_judged(decision, kept, actions) for kept in (*history.feedback, *fresh)]
        fates += [new for new, old in zip(judged, (*history.feedback, *fresh), strict=True) if new != old]
        usable = [kept.feedback for kept in judged if kept.state == FeedbackState.JOINED]
        change = _change(history.experience, decision, join(decision, usable, actions), last_number + 1)
        if change is not None:
            changes.append(change)
            last_number = max(last_number, change.after.number)
    discarded = sum(kept.state == FeedbackState.DISCARDED for kept in fates)
    return Joined(changes, fates, waiting, discarded)


def _change(before: Experience | None, decision: Served, judgement: Judgement | None, number: int) -> Change | None:
    if before is None:
        return None if judgement is None else Change(None, Experience(number, decision, judgement))
    return None if before.judgement == judgement else Change(before, replace(before, judgement=judgement))


def _judged(decision: Served, kept: Kept, actions: Sequence[str]) -> Kept:
    """A fate once decided stays: action sets change, the past does not."""
    if kept.state != FeedbackState.WAITING:
        return kept
    problem = refusal(decision, kept.feedback, actions)
    if problem is not None:
        return Kept(kept.feedback, FeedbackState.DISCARDED, problem)
    return Kept(kept.feedback, FeedbackState.JOINED)


def _first(batch: Read, seen: dict[str, _E], id_: str, event: _E) -> None:
    if id_ in seen:
        batch.outcomes["duplicate"] += 1
    else:
        seen[id_] = event


def _bury(batch: Read, record: Record, reason: str, payload: bytes, now_s: float) -> None:
    batch.dead_letters.append(DeadLetter(record.topic, record.position, reason, payload, now_s))
    batch.outcomes["poison"] += 1


def _finite(features: Features) -> bool:
    return bool(np.isfinite(features.embedding).all() and np.isfinite(features.base_logits).all())

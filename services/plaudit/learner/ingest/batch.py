"""From records of the log to what they change: new decisions, feedback with its fate, judgements before and after.

Pure but for reading the store. Each prediction id and each feedback id counts once, however often it is delivered.
Knows nothing about reward models, versions or when to save.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from plaudit.core.events import DeadLetter, Decision, Features, Feedback
from plaudit.core.experience import DecisionHeader, FeedbackState, header_of
from plaudit.core.ports.log import Positions, Record, UnreadableRecord
from plaudit.core.ports.store import ExperienceStore, IngestBatch, LabelUpdate, PredictionHistory, StoredFeedback
from plaudit.core.user_groups import group_problem
from plaudit.core.wire import encode_event
from plaudit.learner.ingest.join import join, refusal

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
    histories: Mapping[str, PredictionHistory] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)


def read(records: Sequence[Record], store: ExperienceStore, model: str, now_s: float) -> Read:
    """Sort the records; leave out what the store already has."""
    batch = Read()
    for record in records:
        match record.event:
            case UnreadableRecord(payload, reason):
                _bury(batch, record, reason, payload, now_s)
            case Decision() as decision if decision.model != model:
                batch.outcomes["foreign"] += 1
            case Decision() | Feedback() as event if (problem := unusable(event)) is not None:
                _bury(batch, record, problem, encode_event(event), now_s)
            case Decision() as decision:
                _first(batch, batch.decisions, decision.prediction_id, decision)
            case Feedback() as feedback:
                _first(batch, batch.feedback, feedback.feedback_id, feedback)
            case _:
                batch.outcomes["foreign"] += 1
    batch.histories = store.histories(
        list(dict.fromkeys((*batch.decisions, *(f.prediction_id for f in batch.feedback.values()))))
    )
    for id_ in [id_ for id_ in batch.decisions if batch.histories[id_].decision is not None]:
        del batch.decisions[id_]
        batch.outcomes["duplicate"] += 1
    for id_ in store.feedback(list(batch.feedback)):
        del batch.feedback[id_]
        batch.outcomes["duplicate"] += 1
    batch.outcomes["decision"] += len(batch.decisions)
    batch.outcomes["feedback"] += len(batch.feedback)
    return batch


def unusable(event: Decision | Feedback) -> str | None:
    """Why an event that can be read cannot be learned from, in one sentence; None if it can."""
    match event:
        case Decision():
            texts = {"prediction_id": event.prediction_id, "user_id": event.user_id, "action": event.action}
            texts |= {f"dynamic_actions[{i}].id": each.id for i, each in enumerate(event.dynamic_actions)}
            if event.features is not None and not _finite(event.features):
                return "features: hold a value that is not finite"
            if problem := group_problem(event.user_group):
                return f"user_group: {problem}"
        case Feedback():
            texts = {"feedback_id": event.feedback_id, "prediction_id": event.prediction_id, "user_id": event.user_id}
    for field_name, text in texts.items():
        if "\0" in text:  # PostgreSQL keeps no such text
            return f"{field_name}: {text[:40]!r} has a character of code zero"
    return None


def arrivals(batch: Read, actions: Sequence[str], since: Positions, positions: Positions) -> IngestBatch:
    """Judge every prediction that the batch speaks of anew.

    Args:
        batch: what is new.
        actions: the action set.
        since: where the partitions of the batch were read from.
        positions: where reading them continues.
    """
    said: dict[str, list[Feedback]] = {}
    for feedback in batch.feedback.values():
        said.setdefault(feedback.prediction_id, []).append(feedback)
    judged: list[LabelUpdate] = []
    fates: list[StoredFeedback] = []
    waiting = 0
    for id_ in dict.fromkeys((*batch.decisions, *said)):
        history = batch.histories[id_]
        decision = header_of(batch.decisions[id_]) if id_ in batch.decisions else history.decision
        fresh = [StoredFeedback(feedback, FeedbackState.WAITING) for feedback in said.get(id_, ())]
        if decision is None:
            fates += fresh
            waiting += len(fresh)
            continue
        waiting -= sum(kept.state == FeedbackState.WAITING for kept in history.feedback)
        decided = [_decided(decision, kept, actions) for kept in (*history.feedback, *fresh)]
        fates += [new for new, old in zip(decided, (*history.feedback, *fresh), strict=True) if new != old]
        usable = [kept.feedback for kept in decided if kept.state == FeedbackState.JOINED]
        label, before = join(decision, usable, actions), history.experience
        if label != (None if before is None else before.label):
            judged.append(LabelUpdate(id_, label, before))
    return IngestBatch(
        since=since,
        positions=positions,
        decisions=list(batch.decisions.values()),
        feedback=fates,
        judged=judged,
        arrived=list(batch.feedback.values()),
        waiting=waiting,
        outcomes=batch.outcomes,
    )


def _decided(decision: DecisionHeader, kept: StoredFeedback, actions: Sequence[str]) -> StoredFeedback:
    """A fate once decided stays: action sets change, the past does not."""
    if kept.state != FeedbackState.WAITING:
        return kept
    problem = refusal(decision, kept.feedback, actions)
    if problem is not None:
        return StoredFeedback(kept.feedback, FeedbackState.DISCARDED, problem)
    return StoredFeedback(kept.feedback, FeedbackState.JOINED)


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

"""From records of the log to their effects: new decisions, feedback with its state, labels before and after.

Pure but for reading the store. Each prediction id and each feedback id counts once, however often it is delivered.
Knows nothing about reward models, versions or when to save.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import numpy as np

from plaudit.core.events import DeadLetter, Decision, Features, Feedback, Topic
from plaudit.core.experience import DecisionHeader, FeedbackState, header_of
from plaudit.core.limits import MAX_FEATURE, MAX_FEATURE_VALUES, MAX_STORED_ID_CHARACTERS, MIN_PROPENSITY
from plaudit.core.ports.log import Positions, Record, UnreadableRecord
from plaudit.core.ports.store import (
    DeadFeedback,
    IngestBatch,
    IngestStore,
    LabelUpdate,
    PredictionHistory,
    StoredFeedback,
)
from plaudit.core.text.user_groups import group_problem
from plaudit.core.wire import encode_event, feedback_named_in
from plaudit.learner.ingest.join import join, refusal

_E = TypeVar("_E", Decision, Feedback)
_MAX_PROBLEM: Final = 500


@dataclass(slots=True)
class DecodedBatch:
    """Events of a batch of records that the store does not have.

    Attributes:
        decisions, feedback: by their ids.
        histories: histories of the predictions that these are about, by prediction id.
        dead_letters: records that cannot be used, with the reason.
        dead_feedback: the pieces of feedback among them.
        outcomes: number of records by outcome: decision, feedback, duplicate, other_model, unreadable (a dead letter).
    """

    decisions: dict[str, Decision] = field(default_factory=dict)
    feedback: dict[str, Feedback] = field(default_factory=dict)
    histories: Mapping[str, PredictionHistory] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    dead_feedback: dict[str, DeadFeedback] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)


def decode_batch(records: Sequence[Record], store: IngestStore, model: str, now_s: float) -> DecodedBatch:
    """Sort the records by kind; leave out what the store already has."""
    batch = DecodedBatch()
    for record in records:
        match record.event:
            case UnreadableRecord(payload, reason):
                _reject(batch, record, reason, payload, now_s)
            case Decision() as decision if decision.model != model:
                batch.outcomes["other_model"] += 1
            case Decision() | Feedback() as event if (problem := unusable(event)) is not None:
                _reject(batch, record, problem, encode_event(event), now_s)
            case Decision() as decision:
                _first(batch, batch.decisions, decision.prediction_id, decision)
            case Feedback() as feedback:
                _first(batch, batch.feedback, feedback.feedback_id, feedback)
            case _:
                batch.outcomes["other_model"] += 1
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
            if event.dynamic_actions:
                texts |= {f"dynamic_actions[{i}].id": each.id for i, each in enumerate(event.dynamic_actions)}
            if event.propensity < MIN_PROPENSITY:
                return f"propensity: {event.propensity} is less than {MIN_PROPENSITY}, the least that is learned from"
            if event.features is not None and (problem := _features_problem(event.features)):
                return f"features: {problem}"
            if problem := group_problem(event.user_group):
                return f"user_group: {problem}"
        case Feedback():
            texts = {"feedback_id": event.feedback_id, "prediction_id": event.prediction_id, "user_id": event.user_id}
    for field_name, text in texts.items():
        if "\0" in text:  # PostgreSQL keeps no such text
            return f"{field_name}: {text[:40]!r} has a character of code zero"
        if len(text) > MAX_STORED_ID_CHARACTERS:
            return (
                f"{field_name}: {text[:40]!r}… has {len(text)} characters; at most {MAX_STORED_ID_CHARACTERS} are kept"
            )
    return None


def unjoinable(record: Record, error: Exception) -> Record:
    """The record in place of one that failed where others do not."""
    event = record.event
    payload = event.payload if isinstance(event, UnreadableRecord) else encode_event(event)
    return replace(record, event=UnreadableRecord(payload, f"{type(error).__name__}: {str(error)[:_MAX_PROBLEM]}"))


def ingest_batch(
    batch: DecodedBatch, actions: Sequence[str], since: Positions, positions: Positions, clock_s: float
) -> IngestBatch:
    """Effects of the batch: every prediction that it is about is labelled anew.

    Args:
        actions: the action set.
        since: positions from which the partitions of the batch were read.
        positions: positions at which reading them continues.
        clock_s: of this reader, UTC seconds.
    """
    new: dict[str, list[Feedback]] = {}
    for feedback in batch.feedback.values():
        new.setdefault(feedback.prediction_id, []).append(feedback)
    labels: list[LabelUpdate] = []
    stored: list[StoredFeedback] = []
    waiting = 0
    for id_ in dict.fromkeys((*batch.decisions, *new)):
        history = batch.histories[id_]
        decision = header_of(batch.decisions[id_]) if id_ in batch.decisions else history.decision
        fresh = [StoredFeedback(feedback, FeedbackState.WAITING) for feedback in new.get(id_, ())]
        if decision is None:
            stored += fresh
            waiting += len(fresh)
            continue
        waiting -= sum(each.state == FeedbackState.WAITING for each in history.feedback)
        decided = [_decided(decision, each, actions) for each in (*history.feedback, *fresh)]
        stored += [now for now, old in zip(decided, (*history.feedback, *fresh), strict=True) if now != old]
        usable = [each.feedback for each in decided if each.state == FeedbackState.JOINED]
        label, before = join(decision, usable, actions), history.experience
        if label != (None if before is None else before.label):
            labels.append(LabelUpdate(id_, label, before))
    return IngestBatch(
        since=since,
        positions=positions,
        decisions=list(batch.decisions.values()),
        feedback=stored,
        labels=labels,
        new_feedback=list(batch.feedback.values()),
        waiting=waiting,
        outcomes=batch.outcomes,
        dead_feedback=list(batch.dead_feedback.values()),
        clock_s=clock_s,
    )


def _decided(decision: DecisionHeader, stored: StoredFeedback, actions: Sequence[str]) -> StoredFeedback:
    """The feedback with its state. One that is decided stays: action sets change, the past does not."""
    if stored.state != FeedbackState.WAITING:
        return stored
    problem = refusal(decision, stored.feedback, actions)
    if problem is not None:
        return StoredFeedback(stored.feedback, FeedbackState.DISCARDED, problem)
    return StoredFeedback(stored.feedback, FeedbackState.JOINED)


def _first(batch: DecodedBatch, seen: dict[str, _E], id_: str, event: _E) -> None:
    if id_ in seen:
        batch.outcomes["duplicate"] += 1
    else:
        seen[id_] = event


def _reject(batch: DecodedBatch, record: Record, reason: str, payload: bytes, now_s: float) -> None:
    batch.dead_letters.append(DeadLetter(record.topic, record.position, reason, payload, now_s))
    batch.outcomes["unreadable"] += 1
    if record.topic == Topic.FEEDBACK and (named := feedback_named_in(payload)) is not None:
        id_, time_s = named
        batch.dead_feedback[id_] = DeadFeedback(id_, time_s, reason[:_MAX_PROBLEM])


def _features_problem(features: Features) -> str:
    """What is wrong with the features whatever trunk they are of; "" if nothing is."""
    for name, values in (("embedding", features.embedding), ("base_logits", features.base_logits)):
        if len(values) > MAX_FEATURE_VALUES:
            return f"{name} has {len(values)} values; at most {MAX_FEATURE_VALUES} are taken"
        if len(values) and not float(np.abs(values).max()) <= MAX_FEATURE:  # says no to NaN too
            return f"{name} holds a value that is not finite, or beyond {MAX_FEATURE:g}"
    return ""

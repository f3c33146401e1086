"""Values of the store as rows of its tables, and back. Payloads are in the log's own encoding (core/wire.py).

Rows are tuples in the order of columns that are named here or in schema.py: several are written and read per event.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
from sqlalchemy import Row

from plaudit.adapters.store.schema import EXPERIENCE_VALUES, HEADER_COLUMNS, LABEL_COLUMNS, NOBODY
from plaudit.core.events import Decision, Features, Feedback, Topic
from plaudit.core.experience import DecisionHeader, Experience, FeedbackState, Label, RaterLabel, rater_labels
from plaudit.core.ports.store import DeadFeedback, ExperimentSummary, IntakeStats, StoredFeedback
from plaudit.core.wire import decode_event, encode_event, encode_without_features

DECISION_ROW: Final = (
    *("prediction_id", "time_s", "user_id", "version", "action", "propensity", "allowed_actions"),
    *("greedy", "modalities", "payload", "user_group", "dynamic_actions"),
)
FEATURES_ROW: Final = ("prediction_id", "trunk_digest", "embedding", "base_logits")
FEEDBACK_ROW: Final = ("feedback_id", "prediction_id", "time_s", "state", "reason", "batch", "payload")
DEAD_FEEDBACK_ROW: Final = ("feedback_id", "time_s", "reason", "batch")

SUMMARY_ROW: Final = ("generation", "version", "details")

_LABEL: Final = len(EXPERIENCE_VALUES) - len(LABEL_COLUMNS)
_HEADER: Final = len(EXPERIENCE_VALUES)
_FORMER_LABEL: Final = _HEADER + len(HEADER_COLUMNS)
"""Places in values of EXPERIENCE_COLUMNS at which these begin."""

Values = tuple[Any, ...]
"""Values of one row."""

_NO_ACTIONS: Final = "[]"
"""Without dynamic actions. Lists of them differ from request to request, so unlike names they are not cached."""


def decision_row(decision: Decision) -> Values:
    """Values of DECISION_ROW."""
    ids = [action.id for action in decision.dynamic_actions]
    return (
        decision.prediction_id,
        decision.time_s,
        decision.user_id,
        decision.version,
        decision.action,
        decision.propensity,
        _listed(decision.allowed_actions),
        decision.greedy,
        _listed(tuple(sorted(decision.content))),
        encode_without_features(decision),
        decision.user_group,
        json.dumps(ids) if ids else _NO_ACTIONS,
    )


def header_from_values(values: Values) -> DecisionHeader:
    """Header of values of HEADER_COLUMNS."""
    id_, time_s, user_id, version, action, propensity, allowed, greedy, modalities, user_group, dynamic = values
    return DecisionHeader(
        prediction_id=id_,
        time_s=time_s,
        user_id=user_id,
        version=version,
        action=action,
        propensity=propensity,
        allowed_actions=_names(allowed),
        greedy=greedy,
        modalities=_names(modalities),
        user_group=user_group,
        dynamic_actions=() if dynamic == _NO_ACTIONS else tuple(json.loads(dynamic)),
    )


@lru_cache(maxsize=1024)
def _listed(names: tuple[str, ...]) -> str:
    return json.dumps(names)


@lru_cache(maxsize=1024)
def _names(listed: str) -> tuple[str, ...]:
    return tuple(json.loads(listed))


def decision_from_payload(payload: bytes) -> Decision:
    decision = decode_event(Topic.DECISIONS, payload)
    assert isinstance(decision, Decision)
    return decision


def feedback_row(stored: StoredFeedback, batch: int) -> Values:
    """Values of FEEDBACK_ROW."""
    feedback = stored.feedback
    return (
        feedback.feedback_id,
        feedback.prediction_id,
        feedback.time_s,
        stored.state.value,
        stored.reason,
        batch,
        encode_event(feedback),
    )


def feedback_from_row(row: Row[Any]) -> StoredFeedback:
    return StoredFeedback(feedback_in(row.payload), FeedbackState(row.state), row.reason)


def feedback_in(payload: bytes) -> Feedback:
    feedback = decode_event(Topic.FEEDBACK, payload)
    assert isinstance(feedback, Feedback)
    return feedback


def dead_feedback_row(dead: DeadFeedback, batch: int) -> Values:
    """Values of DEAD_FEEDBACK_ROW."""
    return dead.feedback_id, dead.time_s, dead.reason, batch


def label_values(label: Label | None) -> Values:
    """Values of LABEL_COLUMNS."""
    if label is None:
        return (None,) * len(LABEL_COLUMNS)
    rewards = _rewards(tuple(label.rewards.items()))
    return rewards, label.weight, label.correction, _raters(label.by_rater)


def _raters(by_rater: Sequence[RaterLabel]) -> str | None:
    if not by_rater:
        return None
    if len(by_rater) == 1:
        return json.dumps([by_rater[0].rater])
    return json.dumps([[each.rater, dict(each.rewards), each.weight, each.correction] for each in by_rater])


def label_from_values(values: Values) -> Label | None:
    """Label of values of LABEL_COLUMNS."""
    return None if values[0] is None else _label(*values)


@lru_cache(maxsize=4096)
def _rewards(rewards: tuple[tuple[str, float], ...]) -> str:
    return json.dumps(dict(rewards))


@lru_cache(maxsize=4096)
def _label(rewards: str, weight: float, correction: str | None, raters: str | None) -> Label:
    label = Label(json.loads(rewards), weight, correction)
    return label if raters is None else replace(label, by_rater=_by_rater(label, json.loads(raters)))


def _by_rater(label: Label, rows: Sequence[Any]) -> tuple[RaterLabel, ...]:
    if isinstance(rows[0], str):
        return (RaterLabel(rows[0], label.rewards, label.weight, label.correction),)
    return tuple(RaterLabel(*row) for row in rows)


def rater_pattern(rater: str) -> str:
    """Text that the column ``raters`` holds wherever the rater is named, and seldom elsewhere."""
    return json.dumps(rater)


def is_rated_by(values: Values, rater: str) -> bool:
    """Whether the label in values of EXPERIENCE_COLUMNS, or the one before its revision, is from this rater too."""
    asker = header_from_values(values[_HEADER:_FORMER_LABEL]).user_id
    labels = present_label(values), label_from_values(values[_FORMER_LABEL:-1])
    return any(each.rater == rater for label in labels for each in rater_labels(label, asker))


def experience_from_values(values: Values, decision: DecisionHeader, label: Label | None) -> Experience:
    """Experience of values of EXPERIENCE_VALUES, without the label in them."""
    number, probabilities, excluded, slice_, outdated, refused = values[:_LABEL]
    known = None if probabilities is None else tuple(np.frombuffer(probabilities, "<f8").tolist())
    nobody_or = () if refused == NOBODY else tuple(json.loads(refused))
    return Experience(number, decision, label, known, excluded, slice_, outdated, nobody_or)


def present_label(values: Values) -> Label | None:
    """Label in values of EXPERIENCE_VALUES."""
    return label_from_values(values[_LABEL : len(EXPERIENCE_VALUES)])


def former_experience(values: Values) -> Experience:
    """Experience of values of EXPERIENCE_COLUMNS, with the label before its revision, if it has one."""
    decision = header_from_values(values[_HEADER:_FORMER_LABEL])
    label = present_label(values) if values[-1] is None else label_from_values(values[_FORMER_LABEL:-1])
    return experience_from_values(values, decision, label)


def probabilities_value(probabilities: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(probabilities)}d", *probabilities)


def summary_row(summary: ExperimentSummary) -> Values:
    """Values of SUMMARY_ROW."""
    return summary.generation, summary.version, json.dumps(summary.details)


def stats_from_row(row: Row[Any]) -> IntakeStats:
    stats = {field.name: getattr(row, field.name) for field in fields(IntakeStats) if field.name != "store_id"}
    return IntakeStats(**stats | {"outcomes": json.loads(row.outcomes)})


def features_row(prediction_id: str, features: Features) -> Values:
    """Values of FEATURES_ROW."""
    return (
        prediction_id,
        features.trunk_digest,
        features.embedding.astype("<f4").tobytes(),
        features.base_logits.astype("<f4").tobytes(),
    )


def features_from_values(trunk_digest: str, embedding: bytes, base_logits: bytes) -> Features:
    return Features(trunk_digest, np.frombuffer(embedding, "<f4"), np.frombuffer(base_logits, "<f4"))

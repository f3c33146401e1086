"""Values of the store as rows of its tables, and back. Payloads are in the log's own encoding (core/wire.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
from sqlalchemy import Row

from plaudit.adapters.store.schema import LABEL_COLUMNS
from plaudit.core.events import Decision, Features, Feedback, Topic
from plaudit.core.experience import DecisionHeader, Experience, FeedbackState, Label, RaterLabel
from plaudit.core.ports.store import ExperimentSummary, IntakeStats, StoredFeedback
from plaudit.core.wire import decode_event, encode_event, encode_without_features

_NONE: Final = "[]"
"""An empty list. Lists of dynamic actions differ from request to request, so unlike names they are not cached."""


def decision_row(decision: Decision) -> dict[str, Any]:
    ids = [action.id for action in decision.dynamic_actions]
    return {
        "prediction_id": decision.prediction_id,
        "time_s": decision.time_s,
        "user_id": decision.user_id,
        "version": decision.version,
        "action": decision.action,
        "propensity": decision.propensity,
        "greedy": decision.greedy,
        "user_group": decision.user_group,
        "allowed_actions": _listed(decision.allowed_actions),
        "modalities": _listed(tuple(sorted(decision.content))),
        "payload": encode_without_features(decision),
        "dynamic_actions": json.dumps(ids) if ids else _NONE,
    }


def header_from_row(row: Row[Any]) -> DecisionHeader:
    return DecisionHeader(
        prediction_id=row.prediction_id,
        time_s=row.time_s,
        user_id=row.user_id,
        version=row.version,
        action=row.action,
        propensity=row.propensity,
        greedy=row.greedy,
        user_group=row.user_group,
        allowed_actions=_names(row.allowed_actions),
        modalities=_names(row.modalities),
        dynamic_actions=tuple(json.loads(row.dynamic_actions)) if row.dynamic_actions != _NONE else (),
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


def feedback_row(stored: StoredFeedback) -> dict[str, Any]:
    return {
        "feedback_id": stored.feedback.feedback_id,
        "prediction_id": stored.feedback.prediction_id,
        "time_s": stored.feedback.time_s,
        "state": stored.state.value,
        "reason": stored.reason,
        "payload": encode_event(stored.feedback),
    }


def feedback_from_row(row: Row[Any]) -> StoredFeedback:
    return StoredFeedback(feedback_in(row.payload), FeedbackState(row.state), row.reason)


def feedback_in(payload: bytes) -> Feedback:
    feedback = decode_event(Topic.FEEDBACK, payload)
    assert isinstance(feedback, Feedback)
    return feedback


def label_row(label: Label | None) -> dict[str, Any]:
    if label is None:
        return dict.fromkeys(LABEL_COLUMNS)
    return {
        "rewards": json.dumps(label.rewards),
        "weight": label.weight,
        "correction": label.correction,
        "raters": _raters(label.by_rater),
    }


def label_from_row(row: Row[Any], prefix: str = "") -> Label | None:
    rewards, weight, correction, raters = (getattr(row, prefix + name) for name in LABEL_COLUMNS)
    if rewards is None:
        return None
    label = Label(json.loads(rewards), weight, correction)
    return label if raters is None else replace(label, by_rater=_by_rater(label, json.loads(raters)))


def rater_pattern(rater: str) -> str:
    """Text that the column ``raters`` holds wherever the rater is named, and seldom elsewhere."""
    return json.dumps(rater)


def _raters(by_rater: Sequence[RaterLabel]) -> str | None:
    if not by_rater:
        return None
    if len(by_rater) == 1:
        return json.dumps([by_rater[0].rater])
    return json.dumps([[each.rater, dict(each.rewards), each.weight, each.correction] for each in by_rater])


def _by_rater(label: Label, rows: Sequence[Any]) -> tuple[RaterLabel, ...]:
    if isinstance(rows[0], str):
        return (RaterLabel(rows[0], label.rewards, label.weight, label.correction),)
    return tuple(RaterLabel(*row) for row in rows)


def experience_from_row(row: Row[Any], decision: DecisionHeader, label: Label | None) -> Experience:
    probabilities = None
    if row.probabilities is not None:
        probabilities = tuple(np.frombuffer(row.probabilities, "<f8").tolist())
    refused = () if row.refused == _NONE else tuple(json.loads(row.refused))
    return Experience(row.number, decision, label, probabilities, row.excluded, row.slice, row.outdated, refused)


def summary_row(summary: ExperimentSummary) -> dict[str, Any]:
    return {"generation": summary.generation, "version": summary.version, "details": json.dumps(summary.details)}


def stats_from_row(row: Row[Any]) -> IntakeStats:
    stats = {field.name: getattr(row, field.name) for field in fields(IntakeStats) if field.name != "store_id"}
    return IntakeStats(**stats | {"outcomes": json.loads(row.outcomes)})


def features_row(prediction_id: str, features: Features) -> dict[str, Any]:
    return {
        "prediction_id": prediction_id,
        "trunk_digest": features.trunk_digest,
        "embedding": features.embedding.astype("<f4").tobytes(),
        "base_logits": features.base_logits.astype("<f4").tobytes(),
    }


def features_from_row(row: Row[Any]) -> Features:
    return Features(
        trunk_digest=row.trunk_digest,
        embedding=np.frombuffer(row.embedding, "<f4"),
        base_logits=np.frombuffer(row.base_logits, "<f4"),
    )

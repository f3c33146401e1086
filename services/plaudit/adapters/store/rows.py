"""Values of the store as rows of its tables, and back. Payloads are in the log's own encoding (core/wire.py)."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import lru_cache
from typing import Any, Final

import numpy as np
from sqlalchemy import Row

from plaudit.adapters.store.schema import LABEL_COLUMNS
from plaudit.core.events import Decision, Features, Feedback, Topic
from plaudit.core.experience import DecisionHeader, Experience, FeedbackState, Label
from plaudit.core.ports.store import ExperimentSummary, IntakeStats, StoredFeedback
from plaudit.core.wire import decode_event, encode_event, encode_without_features

_NO_ACTIONS: Final = "[]"
"""Without dynamic actions. Lists of them differ from request to request, so unlike names they are not cached."""


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
        "dynamic_actions": json.dumps(ids) if ids else _NO_ACTIONS,
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
        dynamic_actions=tuple(json.loads(row.dynamic_actions)) if row.dynamic_actions != _NO_ACTIONS else (),
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
    feedback = decode_event(Topic.FEEDBACK, row.payload)
    assert isinstance(feedback, Feedback)
    return StoredFeedback(feedback, FeedbackState(row.state), row.reason)


def label_row(label: Label | None) -> dict[str, Any]:
    if label is None:
        return dict.fromkeys(LABEL_COLUMNS)
    return {"rewards": json.dumps(label.rewards), "weight": label.weight, "correction": label.correction}


def label_from_row(row: Row[Any], prefix: str = "") -> Label | None:
    rewards, weight, correction = (getattr(row, prefix + name) for name in LABEL_COLUMNS)
    return None if rewards is None else Label(json.loads(rewards), weight, correction)


def experience_from_row(row: Row[Any], decision: DecisionHeader, label: Label | None) -> Experience:
    probabilities = None
    if row.probabilities is not None:
        probabilities = tuple(np.frombuffer(row.probabilities, "<f8").tolist())
    return Experience(row.number, decision, label, probabilities, row.excluded, row.slice, row.outdated)


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

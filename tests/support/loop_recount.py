"""The reward state counted anew from the log alone, with none of the learner's bookkeeping: what it must agree with."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from plaudit.core.events import Decision, Feedback, Retract, Thumb, Topic
from plaudit.core.ports.log import EventLog
from plaudit_models.bandit.features import FeatureSpace, features
from plaudit_models.bandit.reward_model import RewardState, empty_state, evidence_of_actions
from plaudit_models.spec import ModelSpec


def recount(log: EventLog, spec: ModelSpec, space: FeatureSpace) -> tuple[RewardState, int]:
    """State and number of experiences, for logs of thumbs and retractions by one user a decision."""
    decisions: dict[str, Decision] = {}
    last_word: dict[str, dict[str, bool]] = defaultdict(dict)
    seen: set[str] = set()
    for event in everything(log):
        if isinstance(event, Feedback):
            if event.feedback_id in seen:  # some logs may hold a record twice; repeated feedback adds nothing
                continue
            seen.add(event.feedback_id)
        match event:
            case Decision():
                decisions.setdefault(event.prediction_id, event)
            case Feedback(signal=Thumb(up)):
                last_word[event.prediction_id].setdefault(event.user_id, up)
                last_word[event.prediction_id][event.user_id] = up
            case Feedback(signal=Retract("")):
                last_word[event.prediction_id].pop(event.user_id, None)
    state, count = empty_state(space), 0
    for id_, said in last_word.items():
        if id_ in decisions and said:
            decision = decisions[id_]
            assert decision.features is not None
            phi = features(space, decision.features.embedding[None], decision.features.base_logits[None])
            action = np.array([spec.action_index(decision.action)])
            reward = np.array([np.mean([float(up) for up in said.values()])])
            state = state.add(evidence_of_actions(space, phi, action, reward))
            count += 1
    return state, count


def everything(log: EventLog) -> list[object]:
    reader = log.reader("recount", [Topic.DECISIONS, Topic.FEEDBACK], start=dict)
    events: list[object] = []
    while reader.lag():
        events += [record.event for record in reader.poll(1_000, 10.0)]
    reader.close()
    return events

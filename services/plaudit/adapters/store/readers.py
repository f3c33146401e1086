"""ExperienceReader and StatusReader in a SQL database."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from sqlalchemy import or_, select

from plaudit.adapters.store.database import Database
from plaudit.adapters.store.rows import (
    decision_from_payload,
    features_from_values,
    feedback_from_row,
    feedback_in,
    former_experience,
    is_rated_by,
    rater_pattern,
    stats_from_row,
)
from plaudit.adapters.store.schema import (
    DEAD_FEEDBACK,
    DECISIONS,
    EXPERIENCE_COLUMNS,
    EXPERIENCES,
    EXPERIMENTS,
    FEATURES,
    FEEDBACK,
    INTAKE_STATS,
    NOBODY,
    REVISIONS,
    STATE,
    STORE_ID_PART,
)
from plaudit.core.events import Content, Decision, DynamicAction, Features, Feedback
from plaudit.core.experience import Experience, FeedbackState
from plaudit.core.ports.store import ExperimentSummary, FeedbackStatus, IntakeStats

_DEAD_LETTER: Final = "its record is a dead letter"
_STORE_ID: Final = select(STATE.c.value).where(STATE.c.part == STORE_ID_PART)


class SqlReaders:
    """See :class:`plaudit.core.ports.store.ExperienceReader` and :class:`plaudit.core.ports.store.StatusReader`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- ExperienceReader --------------------------------------------------------------------------------------------

    def experiences(
        self,
        *,
        after: int = 0,
        up_to: int | None = None,
        limit: int | None = None,
        rater: str | None = None,
        slice: str | None = None,
    ) -> Sequence[Experience]:
        query = (
            select(*EXPERIENCE_COLUMNS)
            .join(DECISIONS, DECISIONS.c.prediction_id == EXPERIENCES.c.prediction_id)
            .outerjoin(REVISIONS, REVISIONS.c.number == EXPERIENCES.c.number)
            .where(EXPERIENCES.c.number > after)
            .order_by(EXPERIENCES.c.number)
            .limit(limit)
        )
        if up_to is not None:
            query = query.where(EXPERIENCES.c.number <= up_to)
        if rater is not None:
            named = [
                table.c.raters.contains(rater_pattern(rater), autoescape=True) for table in (EXPERIENCES, REVISIONS)
            ]
            unnamed = EXPERIENCES.c.raters.is_(None) | (REVISIONS.c.rewards.is_not(None) & REVISIONS.c.raters.is_(None))
            query = query.where(or_(*named, unnamed & (DECISIONS.c.user_id == rater)))
        if slice is not None:
            query = query.where(EXPERIENCES.c.slice == slice)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return [former_experience(row) for row in rows if rater is None or is_rated_by(row, rater)]

    def features(self, prediction_ids: Sequence[str], trunk_digest: str) -> Mapping[str, Features]:
        if not prediction_ids:
            return {}
        of_trunk = FEATURES.c.trunk_digest == trunk_digest
        query = select(FEATURES.c.prediction_id, FEATURES.c.embedding, FEATURES.c.base_logits).where(
            of_trunk, self._database.among(FEATURES.c.prediction_id, prediction_ids)
        )
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return {id_: features_from_values(trunk_digest, *values) for id_, *values in rows}

    def contents(self, prediction_ids: Sequence[str]) -> Mapping[str, Mapping[str, Content]]:
        return {decision.prediction_id: decision.content for decision in self._decisions(prediction_ids)}

    def dynamic_actions(self, prediction_ids: Sequence[str]) -> Mapping[str, Sequence[DynamicAction]]:
        return {decision.prediction_id: decision.dynamic_actions for decision in self._decisions(prediction_ids)}

    def _decisions(self, prediction_ids: Sequence[str]) -> list[Decision]:
        query = select(DECISIONS.c.payload).where(self._database.among(DECISIONS.c.prediction_id, prediction_ids))
        with self._database.reading() as connection:
            return [decision_from_payload(row.payload) for row in connection.execute(query)]

    # --- StatusReader ------------------------------------------------------------------------------------------------

    def feedback_status(self, feedback_id: str) -> FeedbackStatus | None:
        query = (
            select(
                *(FEEDBACK.c[name] for name in ("state", "time_s", "reason", "batch", "payload")),
                EXPERIENCES.c.excluded,
                EXPERIENCES.c.refused,
                _STORE_ID.scalar_subquery().label("store_id"),
            )
            .outerjoin(EXPERIENCES, EXPERIENCES.c.prediction_id == FEEDBACK.c.prediction_id)
            .where(FEEDBACK.c.feedback_id == feedback_id)
        )
        dead = select(DEAD_FEEDBACK).where(DEAD_FEEDBACK.c.feedback_id == feedback_id)
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                letter = connection.execute(dead).one_or_none()
                if letter is None:
                    return None
                reason = f"{_DEAD_LETTER}: {letter.reason}"
                return FeedbackStatus(FeedbackState.DISCARDED, letter.time_s, reason, letter.batch)
        state, store_id = FeedbackState(row.state), (row.store_id or b"").decode()
        refused = json.loads(row.refused or NOBODY)
        excluded = bool(row.excluded) or (bool(refused) and feedback_in(row.payload).user_id in refused)
        return FeedbackStatus(state, row.time_s, row.reason, row.batch, excluded, store_id)

    def experiment_summary(self, version: int) -> ExperimentSummary | None:
        of_version = EXPERIMENTS.c.version == version
        query = select(EXPERIMENTS).where(of_version).order_by(EXPERIMENTS.c.generation.desc()).limit(1)
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else ExperimentSummary(row.generation, row.version, json.loads(row.details))

    def intake_stats(self) -> IntakeStats:
        with self._database.reading() as connection:
            stats = stats_from_row(connection.execute(select(INTAKE_STATS)).one())
            return replace(stats, store_id=(connection.scalar(_STORE_ID) or b"").decode())

    def orphans(self, limit: int) -> Sequence[Feedback]:
        waiting = FEEDBACK.c.state == FeedbackState.WAITING
        query = select(FEEDBACK).where(waiting).order_by(FEEDBACK.c.time_s).limit(limit)
        with self._database.reading() as connection:
            return [feedback_from_row(row).feedback for row in connection.execute(query)]

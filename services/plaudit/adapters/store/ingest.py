"""IngestStore in a SQL database: batches of records, each saved with the positions that it was read up to."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import select, update

from plaudit.adapters.store.labels import LabelWriter
from plaudit.adapters.store.rows import (
    DEAD_FEEDBACK_ROW,
    DECISION_ROW,
    FEATURES_ROW,
    FEEDBACK_ROW,
    dead_feedback_row,
    decision_row,
    experience_from_values,
    features_row,
    feedback_from_row,
    feedback_row,
    header_from_values,
    present_label,
    stats_from_row,
)
from plaudit.adapters.store.schema import (
    DEAD_FEEDBACK,
    DECISIONS,
    EXPERIENCE_VALUES,
    EXPERIENCES,
    FEATURES,
    FEEDBACK,
    HEADER_COLUMNS,
    INTAKE_STATS,
    POSITIONS,
)
from plaudit.core.errors import StoreMoved
from plaudit.core.experience import DecisionHeader, Experience, FeedbackState
from plaudit.core.limits import LOG_GAP_S
from plaudit.core.log_time import LogTime, advanced
from plaudit.core.ports.log import Positions
from plaudit.core.ports.store import IngestBatch, PredictionHistory, StoredFeedback

_POSITION_ROW: Final = ("partition", "cursor")


class SqlIngest(LabelWriter):
    """See :class:`plaudit.core.ports.store.IngestStore`."""

    def positions(self) -> Positions:
        with self._database.reading() as connection:
            return {row.partition: row.cursor for row in connection.execute(select(POSITIONS))}

    def save_batch(self, batch: IngestBatch) -> None:
        database = self._database
        with database.locked() as (connection, row):
            of_batch = POSITIONS.c.partition.in_(list(batch.positions))
            saved = {row.partition: row.cursor for row in connection.execute(select(POSITIONS).where(of_batch))}
            if any(saved.get(name) != batch.since.get(name) for name in batch.positions):
                raise StoreMoved
            database.insert(connection, DECISIONS, DECISION_ROW, [decision_row(d) for d in batch.decisions])
            features = {d.prediction_id: d.features for d in batch.decisions if d.features is not None}
            database.upsert(connection, FEATURES, FEATURES_ROW, [features_row(*item) for item in features.items()])
            stats = stats_from_row(row)
            number = stats.batches + 1
            database.upsert(connection, FEEDBACK, FEEDBACK_ROW, [feedback_row(each, number) for each in batch.feedback])
            dead = [dead_feedback_row(each, number) for each in batch.dead_feedback]
            database.upsert(connection, DEAD_FEEDBACK, DEAD_FEEDBACK_ROW, dead)
            last_number = self._label(connection, stats.last_number, batch.labels)
            database.upsert(connection, POSITIONS, _POSITION_ROW, list(batch.positions.items()))
            latest = batch.new_feedback[-1].feedback_id if batch.new_feedback else stats.last_feedback_id
            ahead_s = batch.clock_s + LOG_GAP_S
            times_s = [feedback.time_s for feedback in batch.new_feedback if feedback.time_s <= ahead_s]
            latest_s = max([stats.last_feedback_time_s, *times_s])
            before = LogTime(stats.log_time_s, stats.log_gap_to_s)
            log_time = advanced(before, [*(d.time_s for d in batch.decisions), *times_s], batch.clock_s)
            discarded = sum(stored.state == FeedbackState.DISCARDED for stored in batch.feedback)
            connection.execute(
                update(INTAKE_STATS).values(
                    batches=number,
                    last_number=last_number,
                    feedback=stats.feedback + len(batch.new_feedback),
                    last_feedback_id=latest,
                    last_feedback_time_s=latest_s,
                    waiting=stats.waiting + batch.waiting,
                    discarded=stats.discarded + discarded,
                    outcomes=json.dumps(Counter(stats.outcomes) + Counter(batch.outcomes)),
                    log_time_s=log_time.time_s,
                    log_gap_to_s=log_time.gap_to_s,
                )
            )

    def histories(self, prediction_ids: Sequence[str]) -> Mapping[str, PredictionHistory]:
        decisions: dict[str, DecisionHeader] = {}
        feedback: dict[str, list[StoredFeedback]] = defaultdict(list)
        experiences: dict[str, Experience] = {}
        among = self._database.among
        of_decisions = select(*HEADER_COLUMNS).where(among(DECISIONS.c.prediction_id, prediction_ids))
        of_feedback = select(FEEDBACK).where(among(FEEDBACK.c.prediction_id, prediction_ids))
        of_experiences = select(EXPERIENCES.c.prediction_id, *EXPERIENCE_VALUES).where(
            among(EXPERIENCES.c.prediction_id, prediction_ids)
        )
        with self._database.reading() as connection:
            for row in connection.execute(of_decisions).all():
                decisions[row[0]] = header_from_values(row)
            for row in connection.execute(of_feedback).all():
                feedback[row.prediction_id].append(feedback_from_row(row))
            for row in connection.execute(of_experiences).all():
                values = row[1:]
                experiences[row[0]] = experience_from_values(values, decisions[row[0]], present_label(values))
        return {
            id_: PredictionHistory(decisions.get(id_), feedback.get(id_, []), experiences.get(id_))
            for id_ in prediction_ids
        }

    def feedback(self, feedback_ids: Sequence[str]) -> Mapping[str, StoredFeedback]:
        query = select(FEEDBACK).where(self._database.among(FEEDBACK.c.feedback_id, feedback_ids))
        with self._database.reading() as connection:
            return {row.feedback_id: feedback_from_row(row) for row in connection.execute(query)}

"""Ports of the experience store, the learners' durable state, by capability. One adapter implements them all.

Any number of learners save what they read of the log, each its own partitions (IngestStore). One of them leads: it
alone learns, so it alone saves what is learned (LeaderStore). Any process may read meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from plaudit.core.events import Content, Decision, DynamicAction, Features, Feedback
from plaudit.core.experience import DecisionHeader, Experience, FeedbackState, Label
from plaudit.core.limits import MAX_EVENT_TIME_S
from plaudit.core.ports.log import Positions
from plaudit_models.evaluation.raters import TrustLevel


@dataclass(frozen=True, slots=True)
class StoredFeedback:
    """A piece of feedback in the store, and its state. ``reason`` says why it was discarded."""

    feedback: Feedback
    state: FeedbackState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PredictionHistory:
    """Everything in the store about one prediction.

    Attributes:
        decision: None while the decision has not arrived.
        feedback: in no particular order.
        experience: as of now; None if it was never labelled.
    """

    decision: DecisionHeader | None
    feedback: Sequence[StoredFeedback]
    experience: Experience | None


@dataclass(frozen=True, slots=True)
class LabelUpdate:
    """A new or changed label of one prediction.

    Attributes:
        label: None if everything that users said was retracted.
        before: the experience that gets the label; None: the prediction has none yet and becomes one.
    """

    prediction_id: str
    label: Label | None
    before: Experience | None = None


@dataclass(frozen=True, slots=True)
class DeadFeedback:
    """A piece of feedback whose record became a dead letter, by what could still be read of it.

    Attributes:
        time_s: time at which the server received it, UTC seconds.
    """

    feedback_id: str
    time_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestBatch:
    """Effects of one batch of records; see :meth:`IngestStore.save_batch`.

    Attributes:
        since: positions from which the partitions of the batch were read.
        positions: positions at which reading them continues.
        decisions: new decisions, with their content and features.
        feedback: feedback that is new, or has a new state.
        labels: experiences to be made or changed.
        waiting: change of the number of pieces of feedback that wait for their decision.
        outcomes: number of records by outcome.
        dead_feedback: feedback whose records became dead letters, so that receipts can tell.
        clock_s: clock of the reader, UTC seconds; what is further ahead of it does not move the log's time.
    """

    since: Positions = field(default_factory=dict)
    positions: Positions = field(default_factory=dict)
    decisions: Sequence[Decision] = ()
    feedback: Sequence[StoredFeedback] = ()
    labels: Sequence[LabelUpdate] = ()
    new_feedback: Sequence[Feedback] = ()
    waiting: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    dead_feedback: Sequence[DeadFeedback] = ()
    clock_s: float = MAX_EVENT_TIME_S


@dataclass(frozen=True, slots=True)
class IntakeStats:
    """Counts over everything that all learners of a store have saved.

    Attributes:
        last_number: number of the last experience.
        feedback: pieces of feedback ever saved.
        last_feedback_id: the last of them.
        last_feedback_time_s: latest time at which the server received one of them, UTC seconds.
        waiting: pieces of feedback whose decision has not arrived.
        discarded: pieces of feedback that cannot be learned from.
        outcomes: number of records by outcome.
        log_time_s: time that the log itself has reached (core/log_time.py); 0 before it tells.
        log_gap_to_s: far side of a gap in the log's times that is not proven; 0: there is none.
        store_id: id of the store, drawn when it was made: batches of different stores are not comparable.
    """

    batches: int = 0
    last_number: int = 0
    feedback: int = 0
    last_feedback_id: str = ""
    last_feedback_time_s: float = 0.0
    waiting: int = 0
    discarded: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    log_time_s: float = 0.0
    log_gap_to_s: float = 0.0
    store_id: str = ""


@dataclass(frozen=True, slots=True)
class FeedbackStatus:
    """Status of a piece of feedback in the store.

    Attributes:
        recorded_at_s: time at which the server received it, UTC seconds.
        reason: why it was discarded.
        batch: number of the batch that gave it this state.
        excluded: it was joined, but its experience, or what its rater said of it, is not learned from.
        store_id: id of the store that counts the batches; "" if it has none.
    """

    state: FeedbackState
    recorded_at_s: float
    reason: str
    batch: int
    excluded: bool = False
    store_id: str = ""


@dataclass(frozen=True, slots=True)
class ExperimentSummary:
    """State of one experiment, for people and for other services.

    Attributes:
        generation: of the rollout that began it; one experiment per generation.
        version: the candidate.
        details: JSON-ready; ``verdict`` is None while the experiment is under way.
    """

    generation: int
    version: int
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RaterCommand:
    """An operator's command to give a user a trust level, not applied yet. ``number``: in the order they were given."""

    number: int
    user_id: str
    trust_level: TrustLevel


@dataclass(frozen=True, slots=True)
class LabelRevision:
    """An experience whose label has changed since it was made, or since the leader last resolved its revision.

    Attributes:
        experience: with the former label.
        label: the present label.
        times: number of changes meanwhile.
    """

    experience: Experience
    label: Label | None
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderCommit:
    """Everything that one step of the leader changes; see :meth:`LeaderStore.save`.

    Attributes:
        features: features by prediction id.
        probabilities: probabilities of the actions by experience number.
        excluded: numbers of experiences that are no longer learned from.
        refused: by number, all raters of an experience whose labels are not learned from.
        slices: slices of experiences by number.
        outdated: by number, whether experiences are outdated from now on.
        resolved: revisions that are learned.
        silent: labels of predictions without feedback; they become experiences.
        state: the learner's state by the name of its part, see learner/state.py; None removes the part.
        commands: rater commands whose effects are in this commit; they are pending no longer.
        experiments: summaries, each replacing that of the same generation.
    """

    features: Mapping[str, Features] = field(default_factory=dict)
    probabilities: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    excluded: Sequence[int] = ()
    refused: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    slices: Mapping[int, str] = field(default_factory=dict)
    outdated: Mapping[int, bool] = field(default_factory=dict)
    resolved: Sequence[LabelRevision] = ()
    silent: Sequence[LabelUpdate] = ()
    state: Mapping[str, bytes | None] = field(default_factory=dict)
    commands: Sequence[RaterCommand] = ()
    experiments: Sequence[ExperimentSummary] = ()


class IngestStore(Protocol):
    """Records of the log as every learner, leader or not, saves them, and reads them to decide what is new."""

    def positions(self) -> Positions:
        """Positions in the log up to which its effects are saved."""
        ...

    def save_batch(self, batch: IngestBatch) -> None:
        """All of it or nothing, in one transaction. New experiences are numbered on, without a gap.

        Raises:
            StoreMoved: another learner has saved records of one of the partitions since ``batch.since``, or has
                labelled one of the predictions. Nothing was saved.
            UnstorableValue: a record holds a value that the database does not keep. Nothing was saved.
            StoreUnavailable: nothing was saved.
        """
        ...

    def histories(self, prediction_ids: Sequence[str]) -> Mapping[str, PredictionHistory]:
        """Histories of all ids that are asked for; the history of an unknown prediction is empty."""
        ...

    def feedback(self, feedback_ids: Sequence[str]) -> Mapping[str, StoredFeedback]:
        """Feedback by id, of those of the ids that are known."""
        ...


class ExperienceReader(Protocol):
    """Experiences and what the store has of their predictions."""

    def experiences(
        self,
        *,
        after: int = 0,
        up_to: int | None = None,
        limit: int | None = None,
        rater: str | None = None,
        slice: str | None = None,
    ) -> Sequence[Experience]:
        """Experiences numbered ``after`` + 1 … ``up_to``, by number, including those without a label any more.

        One with a revision has the former label. With ``rater`` only those that this user rated, before or after a
        revision; with ``slice`` only those of that slice.
        """
        ...

    def features(self, prediction_ids: Sequence[str], trunk_digest: str) -> Mapping[str, Features]:
        """Features by id, of those of the predictions that have features of this trunk."""
        ...

    def contents(self, prediction_ids: Sequence[str]) -> Mapping[str, Mapping[str, Content]]:
        """Content by id, of those of the ids whose decision arrived; empty where content was not logged."""
        ...

    def dynamic_actions(self, prediction_ids: Sequence[str]) -> Mapping[str, Sequence[DynamicAction]]:
        """Dynamic actions with their texts by id, of those of the ids whose decision arrived; empty where the request
        listed none."""
        ...


class LeaderStore(Protocol):
    """Learned state, which the leader alone saves."""

    def lead(self) -> bool:
        """Become or stay the leader; False if another learner is. A leader that does not ask for seconds may lose it.

        A store that led and hears False has to read the learned state again before it leads again.

        Raises:
            StoreUnavailable: it is not known who leads.
        """
        ...

    def resign(self) -> None:
        """Lead no longer, so that another learner can at once.

        Raises:
            StoreUnavailable: another learner can lead in some seconds.
        """
        ...

    def save(self, commit: LeaderCommit) -> None:
        """All of it or nothing, in one transaction.

        Raises:
            StoreMoved: this store does not lead, or no longer; or feedback about a silent prediction has arrived.
                Nothing was saved.
            StoreUnavailable: nothing was saved.
        """
        ...

    def forget(self, before_s: float, learned: int, limit: int) -> int:
        """Remove predictions made before ``before_s``, the oldest first, with all that belongs to them.

        Experiences numbered above ``learned`` stay, and so do those with a revision.

        Returns:
            Number of predictions and pieces of waiting feedback removed, at most ``limit`` of each.

        Raises:
            StoreMoved, StoreUnavailable: as :meth:`save`.
        """
        ...

    def get_state(self, part: str) -> bytes | None:
        """Value last saved in ``LeaderCommit.state`` for the part."""
        ...

    def revisions(self, up_to: int, limit: int) -> Sequence[LabelRevision]:
        """Revisions of experiences numbered at most ``up_to``."""
        ...

    def decisions_since(self, after: int, before_s: float, limit: int) -> Sequence[tuple[int, DecisionHeader]]:
        """Decisions in the order they arrived, each with its place (> ``after``), that were made before ``before_s``.

        Ends at the first one that was made later.
        """
        ...


class RaterCommandStore(Protocol):
    """Commands of operators about raters, which the leader applies with its next step."""

    def put_command(self, user_id: str, trust_level: TrustLevel) -> None:
        """Add a command. Any process may; commands given at once are all kept.

        Raises:
            StoreUnavailable: nothing was saved.
        """
        ...

    def pending_commands(self) -> Sequence[RaterCommand]:
        """Commands that no :class:`LeaderCommit` has applied, in the order they were given."""
        ...


class StatusReader(Protocol):
    """Status of feedback and experiments of one model, as its learners last saved it. Safe to use from several
    threads. Every method raises StoreUnavailable.
    """

    def feedback_status(self, feedback_id: str) -> FeedbackStatus | None:
        """None if no learner has read it yet, or it is no longer in the store."""
        ...

    def experiment_summary(self, version: int) -> ExperimentSummary | None:
        """Summary of the latest experiment of a version; None if there was none."""
        ...

    def intake_stats(self) -> IntakeStats: ...

    def orphans(self, limit: int) -> Sequence[Feedback]:
        """Feedback whose decision has not arrived, oldest first."""
        ...


StatusReaders = Callable[[str], StatusReader | None]
"""The status reader of a model by its name; None if no learner of it has run yet. Raises StoreUnavailable."""


class FeatureStore(ExperienceReader, Protocol):
    """Reads experiences, and saves the features that are computed of their content."""

    def save(self, commit: LeaderCommit) -> None:
        """See :meth:`LeaderStore.save`."""
        ...


class ExperienceStore(IngestStore, LeaderStore, ExperienceReader, RaterCommandStore, StatusReader, Protocol):
    """All capabilities of one store, as the composition root opens it."""

    @property
    def exclusive(self) -> bool:
        """Whether the leader alone may take in records; elsewhere every learner does."""
        ...

    def close(self) -> None: ...

"""Port of the experience store: the learners' durable state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from plaudit.core.events import Content, Decision, DynamicAction, Features, Feedback
from plaudit.core.experience import DecisionHeader, Experience, FeedbackState, Label
from plaudit.core.ports.log import Positions
from plaudit_models.evaluation.raters import TrustLevel


@dataclass(frozen=True, slots=True)
class StoredFeedback:
    """A piece of feedback in the store, with what became of it. ``reason`` says why it was discarded."""

    feedback: Feedback
    state: FeedbackState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PredictionHistory:
    """Everything the store knows about one prediction.

    Attributes:
        decision: None while the decision has not arrived.
        feedback: in no particular order.
        experience: as of now; None if it was never judged.
    """

    decision: DecisionHeader | None
    feedback: Sequence[StoredFeedback]
    experience: Experience | None


@dataclass(frozen=True, slots=True)
class LabelUpdate:
    """What users say about one prediction has changed.

    Attributes:
        label: what they say now; None if all was taken back.
        before: the experience it becomes of; None: it becomes a new one.
    """

    prediction_id: str
    label: Label | None
    before: Experience | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestBatch:
    """What one batch of records amounts to; see :meth:`ExperienceStore.take_in`.

    Attributes:
        since: where the partitions of the batch were read from.
        positions: where reading them continues.
        decisions: new ones, with their content and features.
        feedback: new, or with a new state.
        judged: experiences to be made or changed.
        arrived: how many pieces of feedback are new.
        waiting: how many more wait for their decision than before.
        outcomes: records by what became of them.
    """

    since: Positions = field(default_factory=dict)
    positions: Positions = field(default_factory=dict)
    decisions: Sequence[Decision] = ()
    feedback: Sequence[StoredFeedback] = ()
    judged: Sequence[LabelUpdate] = ()
    arrived: Sequence[Feedback] = ()
    waiting: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IntakeStats:
    """What all learners of a store have taken in together.

    Attributes:
        batches: how many times something was taken in.
        last_number: number of the last experience.
        feedback: signals ever taken in.
        last_feedback_id: the last of them.
        last_feedback_time_s: when the server received the latest of them, UTC seconds.
        waiting: signals whose decision has not arrived.
        discarded: signals that cannot be learned from.
        outcomes: records of the log by what became of them.
    """

    batches: int = 0
    last_number: int = 0
    feedback: int = 0
    last_feedback_id: str = ""
    last_feedback_time_s: float = 0.0
    waiting: int = 0
    discarded: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FeedbackStatus:
    """What has become of a piece of feedback in the learners' store.

    Attributes:
        recorded_at_s: when the server received it, UTC seconds.
        reason: why it was discarded.
        batch: as how many batches were taken in was this so.
        excluded: it was joined, but its experience is not learned from.
    """

    state: FeedbackState
    recorded_at_s: float
    reason: str
    batch: int
    excluded: bool = False


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


StatusReaders = Callable[[str], StatusReader | None]
"""The status reader of a model by its name; None if no learner of it has run yet. Raises StoreUnavailable."""


@dataclass(frozen=True, slots=True)
class LabelRevision:
    """An experience whose label has changed since it was made, or since the leader last resolved its revision.

    Attributes:
        experience: as it was.
        label: as it is.
        times: how often it has changed meanwhile.
    """

    experience: Experience
    label: Label | None
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderCommit:
    """Everything that one step of the leader changes; see :meth:`ExperienceStore.save`.

    Attributes:
        features: features by prediction id.
        probabilities: those of experiences, by their number.
        excluded: numbers of experiences that are set aside.
        resolved: revisions that are learned.
        silent: predictions that nobody said anything about; they become experiences.
        state: the learner's state by the name of its part, see learner/state.py; None removes the part.
        commands: rater commands whose effects are in this commit; they are pending no longer.
        experiments: summaries, each replacing that of the same generation.
    """

    features: Mapping[str, Features] = field(default_factory=dict)
    probabilities: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    excluded: Sequence[int] = ()
    resolved: Sequence[LabelRevision] = ()
    silent: Sequence[LabelUpdate] = ()
    state: Mapping[str, bytes | None] = field(default_factory=dict)
    commands: Sequence[RaterCommand] = ()
    experiments: Sequence[ExperimentSummary] = ()


class ExperienceStore(Protocol):
    """The learners' durable state: decisions, feedback, experiences, features, and what they remember.

    Any number of learners take in what they read of the log, each its own partitions. One of them leads: it alone
    learns, so it alone saves. Anybody may read meanwhile.
    """

    def positions(self) -> Positions:
        """Up to where the log's effects are saved."""
        ...

    def take_in(self, arrivals: IngestBatch) -> None:
        """All of it or nothing, in one transaction. New experiences are numbered on, without a gap.

        Raises:
            StoreMoved: somebody else has taken in one of the partitions since ``arrivals.since``, or has judged one of
                the predictions. Nothing was saved.
            StoreUnavailable: nothing was saved.
        """
        ...

    def intake_stats(self) -> IntakeStats: ...

    def lead(self) -> bool:
        """Become or stay the leader; False if somebody else is. A leader that does not ask for seconds may lose it.

        Raises:
            StoreMoved: the store has room for one learner, and another has taken over.
        """
        ...

    def save(self, changes: LeaderCommit) -> None:
        """All of it or nothing, in one transaction.

        Raises:
            StoreMoved: this store does not lead, or no longer; or somebody spoke about what was silent. Nothing was
                saved.
            StoreUnavailable: nothing was saved.
        """
        ...

    def forget(self, before_s: float, learned: int, limit: int) -> int:
        """Remove predictions made before ``before_s``, the oldest first, with all that belongs to them; leaders only.

        Experiences numbered above ``learned`` stay, and so do those with a revision.

        Returns:
            How many predictions and pieces of waiting feedback went, at most ``limit`` of each.

        Raises:
            StoreMoved, StoreUnavailable: as :meth:`save`.
        """
        ...

    def get_state(self, part: str) -> bytes | None:
        """Value last saved in ``LeaderCommit.state`` for the part."""
        ...

    def histories(self, prediction_ids: Sequence[str]) -> Mapping[str, PredictionHistory]:
        """Of every id asked for; one that was never heard of has an empty history."""
        ...

    def feedback(self, feedback_ids: Sequence[str]) -> Mapping[str, StoredFeedback]:
        """Of those of the ids that are known."""
        ...

    def feedback_status(self, feedback_id: str) -> FeedbackStatus | None:
        """See :class:`StatusReader`."""
        ...

    def experiment_summary(self, version: int) -> ExperimentSummary | None:
        """See :class:`StatusReader`."""
        ...

    def orphans(self, limit: int) -> Sequence[Feedback]:
        """Feedback whose decision has not arrived, oldest first."""
        ...

    def silent(self, after: int, before_s: float, limit: int) -> Sequence[tuple[int, DecisionHeader]]:
        """Decisions in the order they arrived, each with its place (> ``after``), that were made before ``before_s``.

        Ends at the first one that was made later.
        """
        ...

    def put_command(self, user_id: str, trust_level: TrustLevel) -> None:
        """Add a rater command for the leader to apply. Any process may; commands given at once are all kept.

        Raises:
            StoreUnavailable: nothing was saved.
        """
        ...

    def pending_commands(self) -> Sequence[RaterCommand]:
        """Rater commands that no commit of a leader has applied, in the order they were given."""
        ...

    def experiences(
        self,
        *,
        after: int = 0,
        up_to: int | None = None,
        limit: int | None = None,
        user_id: str | None = None,
    ) -> Sequence[Experience]:
        """Experiences numbered ``after`` + 1 … ``up_to``, by number; those that were taken back are included.

        One with a revision is as it was before. With ``user_id`` only those of decisions made for that user.
        """
        ...

    def revisions(self, up_to: int, limit: int) -> Sequence[LabelRevision]:
        """Of experiences numbered at most ``up_to``."""
        ...

    def features(self, prediction_ids: Sequence[str], trunk_digest: str) -> Mapping[str, Features]:
        """Of those of the ids that have features of this trunk."""
        ...

    def contents(self, prediction_ids: Sequence[str]) -> Mapping[str, Mapping[str, Content]]:
        """Of those of the ids whose decision arrived; empty where content was not logged."""
        ...

    def dynamic_actions(self, prediction_ids: Sequence[str]) -> Mapping[str, Sequence[DynamicAction]]:
        """With their texts, of those of the ids whose decision arrived; empty where the request listed none."""
        ...

    def close(self) -> None: ...

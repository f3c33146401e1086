"""What the services need from the outside, as Protocols. Each docstring is a contract; tests/contracts holds one suite
per port that every adapter passes. Only composition roots know which adapter is behind a port.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from plaudit.core.events import Candidate, Content, Decision, Event, Features, Feedback, Topic
from plaudit.core.experience import Experience, FeedbackState, Judgement, Served
from plaudit.core.rollout import Rollout
from plaudit_models.bundle import Manifest

Cursor = str
"""A position in one partition of a log. Opaque: only the adapter that made it can read it."""

Positions = Mapping[str, Cursor]
"""Where reading continues, by partition; a partition that is not in it is read from its beginning."""


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of one event handed to :meth:`EventLog.append`.

    Attributes:
        duplicate: the log already holds an event of this topic and id; nothing was added. A log that cannot look ids up
            (Kafka) only knows those it appended itself not long ago; others are added again, for readers to drop.
    """

    duplicate: bool


@dataclass(frozen=True, slots=True)
class Poison:
    """A record whose payload is not an event."""

    payload: bytes
    problem: str


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the log.

    Attributes:
        position: where it stands, for people and dead letters; it names the same record for ever.
        partition: the part of the log that it stands in, whatever the topic; all records of one key are in one.
        cursor: reading the partition from here continues after this record.
    """

    topic: Topic
    position: str
    partition: str
    cursor: Cursor
    event: Event | Poison


class EventReader(Protocol):
    """Reads in order per partition and topic, each record at least once.

    What the log lost before it was read comes as a Poison record without payload, once: nothing is passed over.

    Readers of one group share the partitions where the log has several; which are whose may change with every poll.
    """

    def poll(self, limit: int, timeout_s: float) -> Sequence[Record]:
        """Up to ``limit`` next records; waits up to ``timeout_s`` for the first one, then returns what is there."""
        ...

    def commit(self, positions: Positions) -> None:
        """Tell the log how far the effects of reading are saved. Call it after saving them, never before."""
        ...

    def lag(self) -> int:
        """How many records stand after the last one polled, in the partitions that are this reader's."""
        ...

    def close(self) -> None: ...


class EventLog(Protocol):
    """An append-only log with one topic per kind of event. Safe to use from several threads."""

    def append(self, events: Sequence[Event]) -> Sequence[Appended]:
        """Make events durable; when this returns they survive kill -9.

        Raises:
            LogUnavailable: they are not known to be durable. A log without transactions (Kafka) may hold some of them;
                appending them again is safe.
            InvalidInput: one of them is larger than the log takes.
        """
        ...

    def replay(self, events: Sequence[Event]) -> None:
        """Append events that the log may hold already, so that readers meet them again.

        Raises:
            LogUnavailable: not all were appended.
        """
        ...

    def reader(self, group: str, topics: Sequence[Topic], start: Callable[[], Positions] | None = None) -> EventReader:
        """A reader of ``topics``.

        Args:
            start: asked whenever partitions become this reader's, within ``poll`` too, where reading them continues;
                None: where the group's last commit says. ``dict`` reads everything.
        """
        ...

    def feedback_recorded(self, feedback_id: str) -> float | None:
        """When (UTC seconds) this feedback was recorded; None if it was not, or if the log cannot tell (Appended)."""
        ...

    def close(self) -> None: ...


class ModelRegistry(Protocol):
    """Immutable versions of one model and the rollout that says which of them serves.

    Safe to use from several threads and processes. Where the storage is gone, what lists and changes raises
    RegistryUnavailable.
    """

    @property
    def model(self) -> str: ...

    def publish(self, folder: Path) -> Manifest:
        """Take a sealed version folder in under the next version number; what others see is all of it or nothing.

        The folder is moved or copied; the manifest returned carries the number.

        Raises:
            CorruptBundle: the folder does not match its manifest.
        """
        ...

    def versions(self) -> Sequence[int]:
        """Every version, oldest first."""
        ...

    def manifest(self, version: int) -> Manifest:
        """Raises UnknownVersion."""
        ...

    def folder(self, version: int) -> Path:
        """A local folder with the version's files, to be read only. Raises UnknownVersion."""
        ...

    def rollout(self) -> Rollout:
        """The present rollout; generation 0 with nothing live if there is none yet."""
        ...

    def set_rollout(self, rollout: Rollout) -> None:
        """Compare-and-set: ``rollout.generation`` must be the present one plus one. Appended to the ledger.

        Raises:
            RolloutMoved: somebody else changed it meanwhile.
            UnknownVersion: it names a version that does not exist.
        """
        ...

    def ledger(self) -> Sequence[Rollout]:
        """Every rollout there ever was, oldest first."""
        ...

    def prune(self, keep: int) -> Sequence[int]:
        """Remove dead head refreshes but the ``keep`` newest; returns the versions removed.

        Dead is what the rollout does not name. The newest version stays, so that no number is given twice, and so do
        versions of other kinds.
        """
        ...


class ModelCatalog(Protocol):
    """The models there are. Safe to use from several threads."""

    def models(self) -> Sequence[str]:
        """Their names, as of now."""
        ...

    def registry(self, model: str) -> ModelRegistry: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """A piece of feedback in the store, with what became of it. ``reason`` says why it was discarded."""

    feedback: Feedback
    state: FeedbackState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """Everything the store knows about one prediction.

    Attributes:
        served: None while the decision has not arrived.
        feedback: in no particular order.
        experience: as of now; None if it was never judged.
    """

    served: Served | None
    feedback: Sequence[Kept]
    experience: Experience | None


@dataclass(frozen=True, slots=True)
class Judged:
    """What users say about one prediction has changed.

    Attributes:
        judgement: what they say now; None if all was taken back.
        before: the experience it becomes of; None: it becomes a new one.
    """

    prediction_id: str
    judgement: Judgement | None
    before: Experience | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
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
    feedback: Sequence[Kept] = ()
    judged: Sequence[Judged] = ()
    arrived: Sequence[Feedback] = ()
    waiting: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Standing:
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
class Fate:
    """What has become of a piece of feedback in the learners' store.

    Attributes:
        recorded_at_s: when the server received it, UTC seconds.
        reason: why it was discarded.
        batch: as how many batches were taken in was this so.
        set_aside: it was joined, but its experience is not learned from.
    """

    state: FeedbackState
    recorded_at_s: float
    reason: str
    batch: int
    set_aside: bool = False


class Fates(Protocol):
    """Where to ask what the learners made of feedback. Safe to use from several threads."""

    def fate(self, model: str, feedback_id: str) -> Fate | None:
        """None if no learner of that model has read it yet.

        Raises:
            StoreUnavailable: it cannot be told now.
        """
        ...


class TrialRecords(Protocol):
    """Where to ask what the learners made of trials. Safe to use from several threads."""

    def trial(self, model: str, version: int) -> Mapping[str, Any] | None:
        """How the latest trial of a version stands, or how it ended; None if there is none to tell of.

        JSON-ready, as the learner reports it. ``verdict`` is None while it is under way.

        Raises:
            StoreUnavailable: it cannot be told now.
        """
        ...


@dataclass(frozen=True, slots=True)
class Revision:
    """An experience whose judgement has changed since it was made, or since the leader last resolved its revision.

    Attributes:
        experience: as it was.
        judgement: as it is.
        times: how often it has changed meanwhile.
    """

    experience: Experience
    judgement: Judgement | None
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Everything that one step of the leader changes; see :meth:`ExperienceStore.save`.

    Attributes:
        features: features by prediction id.
        probabilities: those of experiences, by their number.
        set_aside: numbers of experiences that are set aside.
        resolved: revisions that are learned.
        silent: predictions that nobody said anything about; they become experiences.
        memory: what the leader remembers between steps, by key; None forgets the key.
    """

    features: Mapping[str, Features] = field(default_factory=dict)
    probabilities: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    set_aside: Sequence[int] = ()
    resolved: Sequence[Revision] = ()
    silent: Sequence[Judged] = ()
    memory: Mapping[str, bytes | None] = field(default_factory=dict)


class ExperienceStore(Protocol):
    """The learners' durable state: decisions, feedback, experiences, features, and what they remember.

    Any number of learners take in what they read of the log, each its own partitions. One of them leads: it alone
    learns, so it alone saves. Anybody may read meanwhile.
    """

    def positions(self) -> Positions:
        """Up to where the log's effects are saved."""
        ...

    def take_in(self, arrivals: Arrivals) -> None:
        """All of it or nothing, in one transaction. New experiences are numbered on, without a gap.

        Raises:
            StoreMoved: somebody else has taken in one of the partitions since ``arrivals.since``, or has judged one of
                the predictions. Nothing was saved.
            StoreUnavailable: nothing was saved.
        """
        ...

    def standing(self) -> Standing: ...

    def lead(self) -> bool:
        """Become or stay the leader; False if somebody else is. A leader that does not ask for seconds may lose it.

        Raises:
            StoreMoved: the store has room for one learner, and another has taken over.
        """
        ...

    def save(self, changes: Changes) -> None:
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

    def recall(self, key: str) -> bytes | None:
        """What was last saved in ``Changes.memory`` under the key."""
        ...

    def histories(self, prediction_ids: Sequence[str]) -> Mapping[str, History]:
        """Of every id asked for; one that was never heard of has an empty history."""
        ...

    def feedback(self, feedback_ids: Sequence[str]) -> Mapping[str, Kept]:
        """Of those of the ids that are known."""
        ...

    def fate(self, feedback_id: str) -> Fate | None:
        """None if it is not, or no longer, in the store."""
        ...

    def orphans(self, limit: int) -> Sequence[Feedback]:
        """Feedback whose decision has not arrived, oldest first."""
        ...

    def silent(self, after: int, before_s: float, limit: int) -> Sequence[tuple[int, Served]]:
        """Decisions in the order they arrived, each with its place (> ``after``), that were made before ``before_s``.

        Ends at the first one that was made later.
        """
        ...

    def leave(self, key: str, value: bytes) -> None:
        """Leave a note for the leader, whoever that is, which finds it with :meth:`recall`. Anybody may.

        Raises:
            StoreUnavailable: nothing was left.
        """
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

    def revisions(self, up_to: int, limit: int) -> Sequence[Revision]:
        """Of experiences numbered at most ``up_to``."""
        ...

    def features(self, prediction_ids: Sequence[str], trunk_digest: str) -> Mapping[str, Features]:
        """Of those of the ids that have features of this trunk."""
        ...

    def contents(self, prediction_ids: Sequence[str]) -> Mapping[str, Mapping[str, Content]]:
        """Of those of the ids whose decision arrived; empty where content was not logged."""
        ...

    def candidates(self, prediction_ids: Sequence[str]) -> Mapping[str, Sequence[Candidate]]:
        """With their texts, of those of the ids whose decision arrived; empty where the request listed none."""
        ...

    def close(self) -> None: ...


class JobState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class JobStatus:
    """``error`` says why a job failed."""

    state: JobState
    error: str = ""


class JobLauncher(Protocol):
    """Runs fine-tuning jobs somewhere. A job is its run folder: ``job.json`` in; ``result.json`` or ``error.json`` out.

    A job outlives the learner that launched it; another learner asks after it by the folder.
    """

    def launch(self, run_dir: Path) -> None:
        """Start the job that ``run_dir/job.json`` describes. Returns at once, or when the job is done."""
        ...

    def status(self, run_dir: Path) -> JobStatus:
        """A job that ended without ``result.json`` has failed, whatever ended it."""
        ...

    def cancel(self, run_dir: Path) -> None:
        """End the job if it is running; returns when it has ended."""
        ...


class TrunkOutputs(NamedTuple):
    """What a trunk makes of a batch.

    Attributes:
        embedding: ``[b, d]``.
        base_logits: ``[b, a]``.
        native: the native outputs that were asked for, by name, ``[b, …]``.
    """

    embedding: npt.NDArray[np.float32]
    base_logits: npt.NDArray[np.float32]
    native: Mapping[str, npt.NDArray[Any]]


class ServableModel(Protocol):
    """One proven version, loaded for inference. Safe to use from several threads.

    There is no close: it is released when nobody refers to it any more, so never under a request.

    Notation:
        b: batch size, d: embedding size, a: number of actions, k: number of candidates
    """

    @property
    def manifest(self) -> Manifest: ...

    @property
    def digest(self) -> str:
        """``manifest.digest``, computed once."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """For the text modalities; None if the version has none."""
        ...

    def trunk(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] = ()) -> TrunkOutputs:
        """Content → features.

        Args:
            inputs: as :class:`plaudit_models.preprocess.Batch` makes them.
            outputs: native outputs of an imported graph that are wanted too.
        """
        ...

    def head(self, embedding: npt.NDArray[np.float32], base_logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Features ``[b, d]`` and ``[b, a]`` → scores ``[b, a]``, unnormalised log-probabilities."""
        ...

    def candidate_vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """What candidates are scored by, ``[k, d]``: base logits are ``embedding · vectorsᵀ``. Only where the spec says
        that the model scores text."""
        ...

    def candidate_scores(
        self, embedding: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], base_logits: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.floating]:
        """Unnormalised log-probabilities of one request's candidates, ``[k]``.

        Args:
            embedding: ``[d]``.
            vectors: ``[k, d]``.
            base_logits: ``[k]``, ``embedding · vectorsᵀ``.
        """
        ...

    def warm(self, batch_sizes: Sequence[int], again: bool = False) -> None:
        """Run every batch size once that was not run before, so that the first request of that size does not pay.

        Args:
            again: run them even if they were run before, such as to time them.
        """
        ...


class ModelRuntime(Protocol):
    """Loads version folders. There is no way to a model that is not proven. Safe to use from several threads."""

    def load(self, folder: Path) -> ServableModel:
        """Check every digest, open the graphs, check them against the spec and against the golden outputs.

        Versions that have the trunk in common share it in memory, so loading a refreshed head costs milliseconds.

        Raises:
            CorruptBundle: the folder is not what its manifest says, or its graphs do not do what they should.
        """
        ...

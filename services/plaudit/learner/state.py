"""What the leader has learned so far: reward states, raters, progress, running comparison.

In memory and in the store the same.

Knows nothing about how any of it is learned.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from plaudit.core.ports.store import ExperienceStore, LeaderCommit
from plaudit.learner import progress as progresses
from plaudit.learner.evaluation import running_comparison as runnings
from plaudit.learner.evaluation.running_comparison import RunningComparison, running_from_bytes
from plaudit.learner.features.action_heads import HEAD_KINDS, FixedActions, Learned
from plaudit.learner.progress import Progress, progress_from_bytes
from plaudit_models.bandit.reward_model import RewardState, state_from_bytes
from plaudit_models.evaluation.gate import GateRules
from plaudit_models.evaluation.raters import Raters, raters_from_bytes

REWARD_STATE: Final = FixedActions.KEY
RATERS: Final = "raters"


def served_key(version: int) -> str:
    """Key of the evidence that a version's head of fixed actions was built from."""
    return f"served/{version}"


class LearnerState:
    """Attributes:
    learned: evidence by kind of decision; None before any version was live.
    """

    learned: Learned | None
    raters: Raters
    progress: Progress
    running: RunningComparison

    def __init__(self, store: ExperienceStore, rules: GateRules) -> None:
        self._store = store
        self._rules = rules
        self.load()

    def load(self) -> None:
        """Begin, or begin again, from what was saved."""
        saved = [(kind, self._store.recall(kind.KEY)) for kind in HEAD_KINDS]
        heads = tuple(kind.from_bytes(raw) for kind, raw in saved if raw is not None)
        self.learned = Learned(heads) if heads else None
        self.raters = raters_from_bytes(self._store.recall(RATERS))
        self.progress = progress_from_bytes(self._store.recall(progresses.KEY))
        self.running = running_from_bytes(self._store.recall(runnings.KEY), self._rules)

    def served_evidence(self, version: int) -> RewardState | None:
        """Evidence that a version's head of fixed actions was built from; None if it is not known."""
        saved = self._store.recall(served_key(version))
        return None if saved is None else state_from_bytes(saved)

    def save(
        self,
        changes: LeaderCommit | None = None,
        *,
        learned: Learned | None = None,
        raters: Raters | None = None,
        progress: Progress | None = None,
        running: RunningComparison | None = None,
    ) -> None:
        """Save what is new of these together with ``changes``, in one transaction.

        Raises:
            StoreMoved, StoreUnavailable: nothing was saved, and nothing here has changed.
        """
        changes = changes or LeaderCommit()
        memory = dict(changes.memory)
        if learned is not None and learned is not self.learned:
            before = () if self.learned is None else self.learned.heads
            memory |= {head.KEY: None for head in before if learned.head(type(head)) is None}
            memory |= {head.KEY: head.to_bytes() for head in learned.heads if head not in before}
        if raters is not None and raters is not self.raters:
            memory[RATERS] = raters.to_bytes()
        if progress is not None and progress is not self.progress:
            memory[progresses.KEY] = progress.to_bytes()
        if running is not None and running is not self.running:
            memory[runnings.KEY] = running.to_bytes()
        self._store.save(replace(changes, memory=memory))
        self.learned = learned or self.learned
        self.raters = raters or self.raters
        self.progress = progress or self.progress
        self.running = running or self.running

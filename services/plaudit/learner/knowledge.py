"""What the leader has learned so far: reward states, raters, progress, running comparison.

In memory and in the store the same.

Knows nothing about how any of it is learned.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from plaudit.core.ports import Changes, ExperienceStore
from plaudit.learner import progress as progresses
from plaudit.learner import running as runnings
from plaudit.learner.evidence import Learned
from plaudit.learner.progress import Progress, progress_from_bytes
from plaudit.learner.running import Running, running_from_bytes
from plaudit_models.candidates import CandidateState, candidate_state_from_bytes
from plaudit_models.gate import GateRules
from plaudit_models.raters import Raters, raters_from_bytes
from plaudit_models.reward_model import RewardState, state_from_bytes

REWARD_STATE: Final = "reward-state"
CANDIDATE_STATE: Final = "candidate-state"
RATERS: Final = "raters"


class Knowledge:
    """Attributes:
    reward: None before any version was live.
    candidates: None while what serves cannot score candidates.
    """

    reward: RewardState | None
    candidates: CandidateState | None
    raters: Raters
    progress: Progress
    running: Running

    def __init__(self, store: ExperienceStore, rules: GateRules) -> None:
        self._store = store
        self._rules = rules
        self.load()

    def load(self) -> None:
        """Begin, or begin again, from what was saved."""
        saved = self._store.recall(REWARD_STATE)
        self.reward = None if saved is None else state_from_bytes(saved)
        saved = self._store.recall(CANDIDATE_STATE)
        self.candidates = None if saved is None else candidate_state_from_bytes(saved)
        self.raters = raters_from_bytes(self._store.recall(RATERS))
        self.progress = progress_from_bytes(self._store.recall(progresses.KEY))
        self.running = running_from_bytes(self._store.recall(runnings.KEY), self._rules)

    @property
    def learned(self) -> Learned | None:
        """Both states together; None before any version was live."""
        return None if self.reward is None else Learned(self.reward, self.candidates)

    def save(
        self,
        changes: Changes | None = None,
        *,
        learned: Learned | None = None,
        raters: Raters | None = None,
        progress: Progress | None = None,
        running: Running | None = None,
    ) -> None:
        """Save what is new of these together with ``changes``, in one transaction.

        Raises:
            StoreMoved, StoreUnavailable: nothing was saved, and nothing here has changed.
        """
        changes = changes or Changes()
        memory = dict(changes.memory)
        if learned is not None and learned.reward is not self.reward:
            memory[REWARD_STATE] = learned.reward.to_bytes()
        if learned is not None and learned.candidates is not self.candidates:
            memory[CANDIDATE_STATE] = None if learned.candidates is None else learned.candidates.to_bytes()
        if raters is not None and raters is not self.raters:
            memory[RATERS] = raters.to_bytes()
        if progress is not None and progress is not self.progress:
            memory[progresses.KEY] = progress.to_bytes()
        if running is not None and running is not self.running:
            memory[runnings.KEY] = running.to_bytes()
        self._store.save(replace(changes, memory=memory))
        if learned is not None:
            self.reward, self.candidates = learned.reward, learned.candidates
        self.raters = raters or self.raters
        self.progress = progress or self.progress
        self.running = running or self.running

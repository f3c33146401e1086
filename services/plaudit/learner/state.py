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
from plaudit.learner.features.evidence import Learned
from plaudit.learner.progress import Progress, progress_from_bytes
from plaudit_models.bandit.dynamic_actions import DynamicActionState, dynamic_action_state_from_bytes
from plaudit_models.bandit.reward_model import RewardState, state_from_bytes
from plaudit_models.evaluation.gate import GateRules
from plaudit_models.evaluation.raters import Raters, raters_from_bytes

REWARD_STATE: Final = "reward-state"
DYNAMIC_ACTION_STATE: Final = "candidate-state"
RATERS: Final = "raters"


def served_key(version: int) -> str:
    """Key of the evidence that a version's head was built from."""
    return f"served/{version}"


class LearnerState:
    """Attributes:
    reward: None before any version was live.
    dynamic_actions: None while what serves cannot score dynamic actions.
    """

    reward: RewardState | None
    dynamic_actions: DynamicActionState | None
    raters: Raters
    progress: Progress
    running: RunningComparison

    def __init__(self, store: ExperienceStore, rules: GateRules) -> None:
        self._store = store
        self._rules = rules
        self.load()

    def load(self) -> None:
        """Begin, or begin again, from what was saved."""
        saved = self._store.recall(REWARD_STATE)
        self.reward = None if saved is None else state_from_bytes(saved)
        saved = self._store.recall(DYNAMIC_ACTION_STATE)
        self.dynamic_actions = None if saved is None else dynamic_action_state_from_bytes(saved)
        self.raters = raters_from_bytes(self._store.recall(RATERS))
        self.progress = progress_from_bytes(self._store.recall(progresses.KEY))
        self.running = running_from_bytes(self._store.recall(runnings.KEY), self._rules)

    @property
    def learned(self) -> Learned | None:
        """Both states together; None before any version was live."""
        return None if self.reward is None else Learned(self.reward, self.dynamic_actions)

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
        if learned is not None and learned.reward is not self.reward:
            memory[REWARD_STATE] = learned.reward.to_bytes()
        if learned is not None and learned.dynamic_actions is not self.dynamic_actions:
            memory[DYNAMIC_ACTION_STATE] = (
                None if learned.dynamic_actions is None else learned.dynamic_actions.to_bytes()
            )
        if raters is not None and raters is not self.raters:
            memory[RATERS] = raters.to_bytes()
        if progress is not None and progress is not self.progress:
            memory[progresses.KEY] = progress.to_bytes()
        if running is not None and running is not self.running:
            memory[runnings.KEY] = running.to_bytes()
        self._store.save(replace(changes, memory=memory))
        if learned is not None:
            self.reward, self.dynamic_actions = learned.reward, learned.dynamic_actions
        self.raters = raters or self.raters
        self.progress = progress or self.progress
        self.running = running or self.running

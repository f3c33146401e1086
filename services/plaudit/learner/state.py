"""The learner's state: what the leader keeps between steps, in memory and in the store the same.

The one place that knows how each part is encoded. Knows nothing about how any of it is learned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypedDict, Unpack

from plaudit.core.ports.log import Positions
from plaudit.core.ports.store import LeaderCommit, LeaderStore
from plaudit.learner.evaluation.experiment import Experiment, experiment_from_bytes
from plaudit.learner.evaluation.running_comparison import RunningComparison, running_from_bytes
from plaudit.learner.features.action_heads import HEAD_KINDS, DynamicActions, FixedActions, Learned
from plaudit.learner.progress import Progress, progress_from_bytes
from plaudit.learner.tuning_state import TuningState, tuning_state_from_bytes
from plaudit_models.bandit.reward_model import RewardState, state_from_bytes
from plaudit_models.evaluation.gate import GateRules, new_comparison
from plaudit_models.evaluation.raters import Raters, raters_from_bytes


class StateParts(TypedDict, total=False):
    """Parts of the state by name.

    Attributes:
        raters: reliability and trust level of each user.
        running: the comparison of the head refreshes with the last gated version.
        experiment: the one under way; None if there is none.
        report_cursors: where reading the reports of inference services continues.
    """

    raters: Raters
    progress: Progress
    running: RunningComparison
    tuning: TuningState
    experiment: Experiment | None
    report_cursors: Positions


@dataclass(frozen=True, slots=True)
class _Codec:
    """Encoding of one part; ``default`` is its value before it was first saved."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    default: Any = None


_CODECS: Final[Mapping[str, _Codec]] = {
    **{kind.KEY: _Codec(kind.to_bytes, kind.from_bytes) for kind in HEAD_KINDS},
    "raters": _Codec(Raters.to_bytes, raters_from_bytes, Raters()),
    "progress": _Codec(Progress.to_bytes, progress_from_bytes, Progress()),
    "running": _Codec(RunningComparison.to_bytes, running_from_bytes),
    "tuning": _Codec(TuningState.to_bytes, tuning_state_from_bytes, TuningState()),
    "experiment": _Codec(Experiment.to_bytes, experiment_from_bytes),
    "report_cursors": _Codec(lambda cursors: json.dumps(dict(cursors)).encode(), json.loads, {}),
}
"""By part."""


_RULES: Final = GateRules()


class LearnerState:
    """Attributes: those of :class:`StateParts`, and the evidence of each kind of decision.

    Args:
        rules: of the running comparison; one that was made under other rules starts anew.
    """

    fixed_actions: FixedActions | None
    dynamic_actions: DynamicActions | None
    raters: Raters
    progress: Progress
    running: RunningComparison
    tuning: TuningState
    experiment: Experiment | None
    report_cursors: Positions

    def __init__(self, store: LeaderStore, rules: GateRules = _RULES) -> None:
        self._store = store
        self._rules = rules
        self.load()

    def load(self) -> None:
        """Begin, or begin again, from what was saved."""
        for part, codec in _CODECS.items():
            raw = self._store.get_state(part)
            setattr(self, part, codec.default if raw is None else codec.decode(raw))
        if self.running is None or self.running.comparison.rules != self._rules:
            self.running = RunningComparison(0, 0, new_comparison(self._rules))

    @property
    def learned(self) -> Learned | None:
        """Evidence of all kinds of decision that the live version can answer; None before any version was live."""
        heads = tuple(head for head in (self.fixed_actions, self.dynamic_actions) if head is not None)
        return Learned(heads) if heads else None

    def served_head(self, version: int) -> RewardState | None:
        """Evidence that a version's head was built from; None if it was not built by this learner, or is removed."""
        saved = self._store.get_state(_served_head(version))
        return None if saved is None else state_from_bytes(saved)

    def save(
        self,
        commit: LeaderCommit | None = None,
        *,
        learned: Learned | None = None,
        served_heads: Mapping[int, RewardState | None] | None = None,
        **parts: Unpack[StateParts],
    ) -> None:
        """Save the parts that are given together with ``commit``, in one transaction.

        Args:
            learned: evidence of all kinds of decision.
            served_heads: evidence that heads were built from, by version; None removes it.

        Raises:
            StoreMoved, StoreUnavailable: nothing was saved, and nothing here has changed.
        """
        values: dict[str, object] = dict(parts)
        if learned is not None:
            values |= {kind.KEY: learned.head(kind) for kind in HEAD_KINDS}
        changed = {part: value for part, value in values.items() if value is not getattr(self, part)}
        encoded = {
            _served_head(version): None if state is None else state.to_bytes()
            for version, state in (served_heads or {}).items()
        }
        encoded |= {part: None if value is None else _CODECS[part].encode(value) for part, value in changed.items()}
        self._store.save(replace(commit or LeaderCommit(), state=encoded))
        for part, value in changed.items():
            setattr(self, part, value)


def _served_head(version: int) -> str:
    return f"served_head/{version}"

"""The learner's state: what the leader keeps between steps, in memory and in the store the same.

The one place that knows how each part is encoded. Knows nothing about how any of it is learned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypedDict, Unpack

from plaudit.core.errors import StateTooLarge
from plaudit.core.limits import MAX_STATE_PART_BYTES
from plaudit.core.ports.log import Positions
from plaudit.core.ports.store import LeaderCommit, LeaderStore
from plaudit.learner.evaluation.experiment import Experiment, experiment_from_bytes
from plaudit.learner.evaluation.running_comparison import RunningComparison, running_from_bytes
from plaudit.learner.features.action_heads import HEAD_KINDS, DynamicActions, FixedActions, Learned
from plaudit.learner.progress import Progress, progress_from_bytes
from plaudit.learner.state_blocks import BlockIndex, block_digests, read_state
from plaudit.learner.tuning_state import TuningState, tuning_state_from_bytes
from plaudit_models.bandit.reward_model import RewardState
from plaudit_models.evaluation.drift import DriftDetector, drift_detector_from_bytes
from plaudit_models.evaluation.gate import GateRules, new_comparison
from plaudit_models.evaluation.raters import Raters, raters_from_bytes


class StateParts(TypedDict, total=False):
    """Parts of the state by name.

    Attributes:
        raters: reliability and trust level of each user.
        detector: finds changes of what users want.
        running: the comparison of the head refreshes with the last gated version.
        experiment: the one under way; None if there is none.
        report_cursors: where reading the reports of inference services continues.
    """

    raters: Raters
    detector: DriftDetector
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
    DynamicActions.KEY: _Codec(DynamicActions.to_bytes, DynamicActions.from_bytes),
    "raters": _Codec(Raters.to_bytes, raters_from_bytes, Raters()),
    "detector": _Codec(DriftDetector.to_bytes, drift_detector_from_bytes, DriftDetector()),
    "progress": _Codec(Progress.to_bytes, progress_from_bytes, Progress()),
    "running": _Codec(RunningComparison.to_bytes, running_from_bytes),
    "tuning": _Codec(TuningState.to_bytes, tuning_state_from_bytes, TuningState()),
    "experiment": _Codec(Experiment.to_bytes, experiment_from_bytes),
    "report_cursors": _Codec(lambda cursors: json.dumps(dict(cursors)).encode(), json.loads, {}),
}
"""By part; the evidence about fixed actions is in blocks (state_blocks.py)."""
_SERVED_HEADS: Final = "served_heads"
"""Part that lists the versions whose heads' evidence is kept."""
_STATES_KEPT: Final = 1
"""Evidence of served heads in memory, beside what is learned: the latest, which the next refresh begins from."""


_RULES: Final = GateRules()


class LearnerState:
    """Attributes: those of :class:`StateParts`, and the evidence of each kind of decision.

    Args:
        rules: of the running comparison; one that was made under other rules starts anew.
    """

    fixed_actions: FixedActions | None
    dynamic_actions: DynamicActions | None
    raters: Raters
    detector: DriftDetector
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
        state, index = read_state(FixedActions.KEY, self._store.get_state)
        self.fixed_actions = None if state is None else FixedActions(state)
        digests = dict(index.digests)
        raw = self._store.get_state(_SERVED_HEADS)
        self._versions: tuple[int, ...] = () if raw is None else tuple(json.loads(raw))
        self._served: dict[int, RewardState] = {}
        for version in self._versions:
            digests |= block_digests(_served_head(version), self._store.get_state)
        self._index = BlockIndex(digests)
        if self.running is None or self.running.comparison.rules != self._rules:
            self.running = RunningComparison(0, 0, new_comparison(self._rules))

    @property
    def learned(self) -> Learned | None:
        """Evidence of all kinds of decision that the live version can answer; None before any version was live."""
        heads = tuple(head for head in (self.fixed_actions, self.dynamic_actions) if head is not None)
        return Learned(heads) if heads else None

    def served_head(self, version: int) -> RewardState | None:
        """Evidence that a version's head was built from; None if it was not built by this learner, or is removed."""
        if version not in self._served:
            state, _ = read_state(_served_head(version), self._store.get_state)
            if state is None:
                return None
            self._served = {version: state}
        return self._served[version]

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
            StoreMoved, StoreUnavailable, StateTooLarge: nothing was saved, and nothing here has changed.
        """
        values: dict[str, object] = dict(parts)
        if learned is not None:
            values |= {kind.KEY: learned.head(kind) for kind in HEAD_KINDS}
        changed = {part: value for part, value in values.items() if value is not getattr(self, part)}
        encoded = {
            part: None if value is None else _CODECS[part].encode(value)
            for part, value in changed.items()
            if part in _CODECS
        }
        served = served_heads or {}
        states = {_served_head(version): state for version, state in served.items()}
        if FixedActions.KEY in changed:
            head = changed[FixedActions.KEY]
            states[FixedActions.KEY] = head.state if isinstance(head, FixedActions) else None
        blocks, index = self._index.changed(states)
        versions = self._versions
        if served:
            kept = {*versions, *served} - {version for version, state in served.items() if state is None}
            versions = tuple(sorted(kept))
            encoded[_SERVED_HEADS] = json.dumps(versions).encode()
        encoded |= blocks
        _require_bounded(encoded)
        self._store.save(replace(commit or LeaderCommit(), state=encoded))
        self._index, self._versions = index, versions
        self._served |= {version: state for version, state in served.items() if state is not None}
        self._served = dict(list(self._served.items())[-_STATES_KEPT:])
        for part, value in changed.items():
            setattr(self, part, value)


def _require_bounded(encoded: Mapping[str, bytes | None]) -> None:
    """Raises StateTooLarge, before a database does in words of its own."""
    for part, value in encoded.items():
        if value is not None and len(value) > MAX_STATE_PART_BYTES:
            raise StateTooLarge(part, len(value), MAX_STATE_PART_BYTES)


def _served_head(version: int) -> str:
    return f"served_head/{version}"

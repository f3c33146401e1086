"""State of fine-tuning as the store keeps it: the phase with what it needs to go on, and the outcomes of the latest
runs.

Pure values and their codec; the phases' behaviour is in :mod:`plaudit.learner.finetuning.scheduler`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from plaudit_models.evaluation.e_process import as_json
from plaudit_models.evaluation.gate import Comparison, comparison_from_dict

_MAX_OUTCOMES: Final = 20


@dataclass(frozen=True, slots=True)
class Idle:
    """No job runs and no candidate is under evaluation."""

    name: ClassVar = "idle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A job trains a candidate.

    Attributes:
        run: name of the run folder.
        started_at_s: start of the job, UTC seconds.
        traceparent: W3C trace context of the span that started the job; "" if that was not traced.
        resumed_step: gradient step of the checkpoint from which the job was last resumed after a kill.
    """

    name: ClassVar = "training"
    run: str
    started_at_s: float
    traceparent: str = ""
    resumed_step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gating:
    """The candidate of a run is compared with what serves, on experiences that came after its snapshot.

    Attributes:
        run, started_at_s, traceparent: as of :class:`Training`.
        position: number of the last experience that the gate has looked at.
        comparison: evidence so far.
    """

    name: ClassVar = "gating"
    run: str
    started_at_s: float
    traceparent: str
    position: int
    comparison: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Experimenting:
    """The candidate of a run is published and serves a share of the users.

    Attributes:
        run: name of the run folder.
        started_at_s: start of the experiment, UTC seconds.
        version: number under which the candidate was published.
    """

    name: ClassVar = "canary"
    run: str
    started_at_s: float
    version: int


Phase = Idle | Training | Gating | Experimenting
_PHASES: Final[Mapping[str, type[Any]]] = {kind.name: kind for kind in (Idle, Training, Gating, Experimenting)}


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """End of a run.

    Attributes:
        outcome: a verdict of the gate or of the experiment, or "failed".
        why: reason in one sentence.
        version: number under which the candidate was published; None if it was not.
        ended_at_s: UTC seconds.
    """

    run: str
    outcome: str
    why: str
    version: int | None
    ended_at_s: float


@dataclass(frozen=True, slots=True)
class TuningState:
    """State of fine-tuning.

    Attributes:
        last_snapshot: number of the last experience when a job was last started.
        outcomes: ends of the latest runs, oldest first.
    """

    phase: Phase = Idle()
    last_snapshot: int = 0
    outcomes: tuple[RunOutcome, ...] = ()

    def ended(self, outcome: RunOutcome) -> TuningState:
        """State after a run has ended."""
        return replace(self, phase=Idle(), outcomes=(*self.outcomes, outcome)[-_MAX_OUTCOMES:])

    def to_bytes(self) -> bytes:
        """JSON; :func:`tuning_state_from_bytes` is its inverse."""
        raw = as_json(self)
        raw["phase"]["name"] = self.phase.name
        return json.dumps(raw).encode()


def tuning_state_from_bytes(saved: bytes) -> TuningState:
    raw = json.loads(saved)
    phase = raw["phase"]
    kind = _PHASES[phase.pop("name")]
    if kind is Gating:
        phase["comparison"] = comparison_from_dict(phase["comparison"])
    outcomes = tuple(RunOutcome(**outcome) for outcome in raw["outcomes"])
    return TuningState(kind(**phase), raw["last_snapshot"], outcomes)

"""Phase of fine-tuning, as the learner's state holds it. Knows nothing about jobs, gate or experiments."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Tuning:
    """Phase of fine-tuning and the latest outcomes.

    Attributes:
        phase: idle, a job is training, its candidate is at the gate, or it is in an experiment with a share of the
        users. run: name of the run folder.
        last_snapshot: number of the last experience when a job was last started.
        position: number of the last experience that the gate has looked at.
        started_at_s: when the job or the experiment began, UTC seconds since the epoch.
        version: the version in an experiment; 0 if there is none.
        resumed_step: gradient step from which the job was last made to go on after it was killed.
        traceparent: of the span that started the job; "" if that was not traced.
        outcomes: the latest ones, oldest first: run, outcome, why, version (if one was published), ended_at_s.
    """

    phase: Literal["idle", "training", "gating", "canary"] = "idle"
    run: str = ""
    last_snapshot: int = 0
    position: int = 0
    started_at_s: float = 0.0
    version: int = 0
    resumed_step: int = 0
    traceparent: str = ""
    outcomes: tuple[dict[str, Any], ...] = ()

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def tuning_from_bytes(raw: bytes) -> Tuning:
    fields = json.loads(raw)
    return Tuning(outcomes=tuple(fields.pop("outcomes")), **fields)

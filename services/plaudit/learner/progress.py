"""Progress of the leader through experiences and feedback: small, JSON, saved with every step."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """Attributes:
    batches: number of saved batches when there was last nothing left to learn.
    last_number: number of the last experience that is learned.
    experiences: number of experiences that are learned from now.
    dynamic_experiences: number of those of them with dynamic actions.
    changes: number of changes: experiences ever added, changed, retracted or excluded.
    refreshed: ``changes`` at the last head refresh.
    feedback: number of pieces of feedback in the batches.
    last_feedback_id: the last of them.
    last_feedback_time_s: latest time at which the server received one of them, UTC seconds.
    silence_place: place of the last decision that was labelled as silent, or was not silent.
    n_users: number of users whose experiences are learned.
    outdated: number of experiences that count no more, because users changed what they want.
    drifts: number of changes of what users want that were found.
    last_drift_time_s: when the last of them was found, UTC seconds; 0: there was none.
    store_id: id of the store that ``batches`` are counted in.
    """

    batches: int = 0
    last_number: int = 0
    experiences: int = 0
    changes: int = 0
    refreshed: int = 0
    feedback: int = 0
    last_feedback_id: str = ""
    last_feedback_time_s: float = 0.0
    silence_place: int = 0
    n_users: int = 0
    dynamic_experiences: int = 0
    outdated: int = 0
    drifts: int = 0
    last_drift_time_s: float = 0.0
    store_id: str = ""

    @property
    def pending(self) -> int:
        """Number of changes that no version has learned from."""
        return self.changes - self.refreshed

    def data(self) -> dict[str, Any]:
        """Counts for the manifest of a version that is made now."""
        return {
            "store_id": self.store_id,
            "batches": self.batches,
            "experiences": self.experiences,
            "dynamic_experiences": self.dynamic_experiences,
            "outdated_experiences": self.outdated,
            "drifts": self.drifts,
            "last_experience": self.last_number,
            "raters": self.n_users,
            "feedback": self.feedback,
            "last_feedback_id": self.last_feedback_id,
            "last_feedback_time_s": self.last_feedback_time_s,
        }

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def progress_from_bytes(raw: bytes) -> Progress:
    return Progress(**json.loads(raw))

"""What follows when users have changed what they want: evidence of the slice from before counts no more, and a former
epoch counts again where users may have come back to it.

Evidence goes by subtraction, so that what is left is what would have been learned without it. Knows nothing about how
changes are found (plaudit_models/evaluation/drift.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import structlog

from plaudit.core.experience import Experience
from plaudit.core.ports.store import ExperienceReader, LeaderCommit
from plaudit.learner.features.action_heads import Learned
from plaudit.learner.features.context import LabelledContext
from plaudit.learner.features.features import contexts_on, labelled_contexts, stored_features
from plaudit.learner.features.policies import PolicyCache
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.progress import Progress
from plaudit.learner.state import LearnerState
from plaudit_models.bandit.reward_model import RewardPrior
from plaudit_models.bundle import Manifest
from plaudit_models.evaluation.drift import Drift, Epoch, explains_best

CHUNK: Final = 1_000
"""Experiences that are taken back in one transaction."""
MAX_AGAIN: Final = 2_000
"""Experiences of a former epoch that count again, the latest."""
JUDGED_ON: Final = 100
"""Experiences after a change that former epochs are judged on."""

_log = structlog.get_logger("plaudit.learner")


@dataclass(kw_only=True, eq=False)
class OutdatedEvidence:
    """Deals with the drifts that are pending, one a step.

    Attributes:
        prior: of the reward model, by which former epochs are judged.
        clock: UTC seconds.
    """

    state: LearnerState
    store: ExperienceReader
    policies: PolicyCache
    prior: RewardPrior
    metrics: LearnerMetrics
    clock: Callable[[], float]

    def step(self, live: Manifest) -> bool:
        """Deal with the first pending drift; False if there is none.

        After a kill in between, it is still pending, and the rest is done.
        """
        if not self.state.detector.pending:
            return False
        drift = self.state.detector.pending[0]
        n_outdated = sum(self._take_back(live, drift))
        n_again = self._settle(live, drift)
        self.metrics.drifts.inc()
        _log.info(
            "drift found: users want something else",
            slice=drift.slice,
            since_experience=drift.since,
            outdated=n_outdated,
            count_again=n_again,
        )
        return True

    def _take_back(self, live: Manifest, drift: Drift) -> Iterator[int]:
        """Subtract outdated evidence, a chunk at a time; yields the number of experiences of each."""
        for chunk in self._chunks(drift.slice, drift.outdated):
            gone = [e for e in chunk if e.counts]
            if gone:
                assert self.state.learned is not None
                learned = self.state.learned.subtract(self._labelled(live, gone))
                self.state.save(
                    LeaderCommit(outdated={e.number: True for e in gone}),
                    learned=learned,
                    progress=self._counting(gone, -1),
                )
            yield len(gone)

    def _settle(self, live: Manifest, drift: Drift) -> int:
        """Settle the drift, with the former epoch that explains the labels since then, if there is one.

        Returns:
            Number of experiences that count again.
        """
        learned = self.state.learned
        assert learned is not None
        former = [self._outdated(drift.slice, epoch) for epoch in drift.former]
        tried = [learned.add(self._labelled(live, experiences)) for experiences in former]
        after = self.store.experiences(after=drift.since - 1, slice=drift.slice, limit=JUDGED_ON)
        judged = [e for e in after if e.counts]
        errors = [self._error(live, each, judged) for each in tried]
        best = explains_best(errors, self._error(live, learned, judged)) if judged else None
        if best is None:
            self.state.save(detector=self.state.detector.settled(), progress=self._found(self.state.progress))
            return 0
        again = former[best]
        self.state.save(
            LeaderCommit(outdated={e.number: False for e in again}),
            learned=tried[best],
            detector=self.state.detector.settled(drift.former[best]),
            progress=self._found(self._counting(again, 1)),
        )
        return len(again)

    def _found(self, progress: Progress) -> Progress:
        return replace(progress, drifts=progress.drifts + 1, last_drift_time_s=self.clock())

    def _error(self, live: Manifest, learned: Learned, experiences: Sequence[Experience]) -> float:
        """Mean squared error of expected rewards of served answers; 0 where there is nothing to compare."""
        labelled = self._labelled(live, experiences)
        expected = learned.expected(self.prior, {i: each.context for i, each in enumerate(labelled)})
        errors = []
        for i, each in enumerate(labelled):
            for action, reward in each.label.rewards.items():
                place = each.context.index(action)
                if place is not None:
                    errors.append(float(np.clip(expected[i].reward[place], 0.0, 1.0)) - reward)
        return float(np.square(errors).mean()) if errors else 0.0

    def _outdated(self, name: str, epoch: Epoch) -> list[Experience]:
        """Latest experiences of a former epoch that may count again."""
        found = [
            replace(e, outdated=False)
            for chunk in self._chunks(name, epoch)
            for e in chunk
            if e.outdated and not e.excluded and e.heard_label is not None
        ]
        return found[-MAX_AGAIN:]

    def _chunks(self, name: str, epoch: Epoch) -> Iterator[Sequence[Experience]]:
        for each in epoch:
            after = each.first - 1
            while chunk := self.store.experiences(after=after, up_to=each.end - 1, limit=CHUNK, slice=name):
                after = chunk[-1].number
                yield chunk

    def _labelled(self, live: Manifest, experiences: Sequence[Experience]) -> list[LabelledContext]:
        features = stored_features(live.trunk_digest, self.store, experiences)
        contexts = contexts_on(self.policies.version(live.version), self.store, experiences, features)
        return labelled_contexts([(e, e.heard_label) for e in experiences], contexts)

    def _counting(self, experiences: Sequence[Experience], sign: int) -> Progress:
        progress = self.state.progress
        return replace(
            progress,
            experiences=progress.experiences + sign * len(experiences),
            dynamic_experiences=progress.dynamic_experiences + sign * sum(e.decision.dynamic for e in experiences),
            outdated=progress.outdated - sign * len(experiences),
            changes=progress.changes + len(experiences),
        )

"""Evaluation of a fine-tuned candidate against what served, on experiences that neither it nor its reward model has
seen: those after its snapshot.

Decisions of every kind are evidence, each over its own actions, so that a candidate which is better at one kind and
worse at another does not pass. Knows nothing about what follows from a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from plaudit.core.events import Features
from plaudit.core.job_run import CANDIDATE
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import FeatureStore
from plaudit.learner.evaluation.off_policy import (
    Compared,
    Policy,
    can_answer,
    compare,
    counts_as_proof,
    logged_policies,
)
from plaudit.learner.features.action_heads import BuiltVersion, Learned
from plaudit.learner.features.features import contexts_on, features_on
from plaudit.learner.features.head_builder import HeadBuilder
from plaudit.learner.features.policies import LoadedPolicy, PolicyCache
from plaudit.learner.finetuning.job_spec import FEATURES, STATE, read_features
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.progress import Progress
from plaudit.learner.tuning_state import Gating
from plaudit_models.bandit.reward_model import state_from_bytes
from plaudit_models.evaluation.gate import Comparison, GateReport

_CHUNK: Final = 32
"""Experiences per step of the loop: a new trunk on that much content takes well under a refresh's time."""


class Candidate:
    """Candidate in the run folder of a job that succeeded, loaded.

    Attributes:
        policy: the version folder, not yet published.
        evidence: what its head of fixed actions was built from.
        learned: evidence that its heads were built from.

    Args:
        builder: says which heads it has.

    Raises:
        CorruptBundle, OSError, ValueError: it cannot be used.
    """

    def __init__(self, run_dir: Path, policies: PolicyCache, builder: HeadBuilder) -> None:
        self._run_dir = run_dir
        self.policy: LoadedPolicy = policies.folder(run_dir / CANDIDATE)
        self.evidence = state_from_bytes((run_dir / STATE).read_bytes())
        built = BuiltVersion(self.policy.manifest, run_dir / CANDIDATE, self.evidence)
        self.learned: Learned = builder.empty(self.policy.manifest).of_version(built)

    def features(self) -> Mapping[str, Features]:
        """Features of the training experiences on the candidate's trunk, by prediction id."""
        path = self._run_dir / FEATURES
        return read_features(path, self.policy.manifest.trunk_digest) if path.exists() else {}


@dataclass(frozen=True, slots=True)
class CandidateGate:
    """Adds experiences to the comparison of a candidate with the policies that served, and shows it as metrics."""

    store: FeatureStore
    registry: ModelRegistry
    builder: HeadBuilder
    metrics: LearnerMetrics

    def add_chunk(self, gating: Gating, candidate: Candidate, progress: Progress) -> tuple[Gating, bool]:
        """The gate's state after the next few experiences, and whether more are waiting."""
        chunk = self.store.experiences(after=gating.position, up_to=progress.last_number, limit=_CHUNK)
        if not chunk:
            return gating, False
        spec = candidate.policy.manifest.spec
        proof = [e for e in chunk if counts_as_proof(e)]
        usable = [e for e in proof if can_answer(e.decision, spec)]
        features = features_on(candidate.policy, self.store, usable, self.store.save)
        contexts = contexts_on(candidate.policy, self.store, usable, features)
        rows = [Compared(e, contexts[e.decision.prediction_id]) for e in usable if e.decision.prediction_id in contexts]
        self.metrics.gate_left_out.inc(len(proof) - len(rows))
        comparison = gating.comparison
        if rows:
            comparison = self._compare(comparison, candidate, rows, progress.n_users)
        return replace(gating, position=chunk[-1].number, comparison=comparison), len(chunk) == _CHUNK

    def show(self, comparison: Comparison) -> GateReport:
        """Set the gate's metrics; returns the report that they show."""
        report = comparison.report()
        self.metrics.gate_n.set(comparison.n)
        for claim, e_value in (("gain", report.e_value_gain), ("harm", report.e_value_harm)):
            self.metrics.gate_e_value.labels(claim).set(e_value)
        for bound, gain in (("estimate", report.gain), ("lower", report.lower), ("upper", report.upper)):
            self.metrics.gate_gain.labels(bound).set(gain)
        return report

    def _compare(
        self, comparison: Comparison, candidate: Candidate, rows: Sequence[Compared], n_users: int
    ) -> Comparison:
        """Compare with the policies that logged, on the features they served on, as noted when each was joined."""
        contexts = [row.context for row in rows]
        expected = candidate.learned.expected(self.builder.settings.prior, dict(enumerate(contexts)))
        logged = logged_policies(rows, self.registry, candidate.policy.manifest.spec.actions)
        return compare(
            comparison,
            rows,
            candidate=[Policy(c.actions, p) for c, p in zip(contexts, candidate.policy.answers(contexts), strict=True)],
            baseline=logged,
            logged=logged,
            q_hat=[Policy(context.actions, expected[i].reward) for i, context in enumerate(contexts)],
            n_users=n_users,
        )

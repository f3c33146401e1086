"""Online update of the leader: experiences that were taken in → evidence and running comparison, a chunk at a time.

Experiences are learned in the order of their numbers; of one whose label changed, the old label is subtracted and the
new one added. Knows nothing about the log, nor about when heads are built from the evidence.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import structlog

from plaudit.core.events import Features
from plaudit.core.experience import Experience, Label, RaterLabel, rater_labels
from plaudit.core.ports.registry import VersionReader
from plaudit.core.ports.store import ExperienceStore, IntakeStats, LabelRevision, LabelUpdate, LeaderCommit
from plaudit.core.settings import LearnerSettings
from plaudit.core.wire import UnreadableEvent
from plaudit.learner.evaluation import running_comparison
from plaudit.learner.evaluation.off_policy import Compared, speaks_plainly
from plaudit.learner.evaluation.propensities import served_probabilities
from plaudit.learner.evaluation.running_comparison import RunningComparison
from plaudit.learner.features.action_heads import Expected
from plaudit.learner.features.context import Context
from plaudit.learner.features.features import (
    contexts_on,
    labelled_contexts,
    made_features,
    relearned,
    stored_features,
)
from plaudit.learner.features.head_builder import HeadBuilder
from plaudit.learner.features.policies import LoadedPolicy, PolicyCache
from plaudit.learner.features.recent_contexts import RecentContexts
from plaudit.learner.ingest.join import silence
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.online.satisfaction import RecentSatisfaction, SatisfactionByVersion
from plaudit.learner.progress import Progress
from plaudit.learner.state import LearnerState
from plaudit_models.bundle import Manifest
from plaudit_models.evaluation.drift import DriftDetector
from plaudit_models.evaluation.raters import Raters, fair_cap

RESTORED: Final = 2_000
"""Number of experiences from before a start by which satisfaction is shown again."""

_LOOK_INTERVAL_S: Final = 1.0
"""Time until old predictions are looked for again where there were none."""
USER_SHARES: Final = 5.0
"""Where there are few users, none may have more than this many equal shares of what is learned."""

_MAX_PROBLEM: Final = 200
_OF_DATA: Final = (ValueError, TypeError, LookupError, ArithmeticError, AssertionError, UnreadableEvent)
"""What an experience can make the maths raise; a failure of the runtime, or of a library, is of no experience."""

_log = structlog.get_logger("plaudit.learner")


@dataclass(frozen=True, slots=True)
class ExperienceChange:
    """One experience before and after a step; ``before`` is None when it is new."""

    before: Experience | None
    after: Experience

    @property
    def subtracts(self) -> Label | None:
        """Label that the evidence loses."""
        return self.before.heard_label if self.before is not None and self.before.counts else None

    @property
    def adds(self) -> Label | None:
        """Label that the evidence gains."""
        return self.after.heard_label if self.after.counts else None

    @property
    def balance(self) -> int:
        """Change in the number of experiences that are learned from: −1, 0 or 1."""
        return (self.adds is not None) - (self.subtracts is not None)


@dataclass(frozen=True, slots=True)
class Said:
    """What a rater says of an experience that was not said before.

    Attributes:
        experience: with the label that it is part of.
        label: the rater's part.
        is_first: whether the rater had said nothing of the experience before.
    """

    experience: Experience
    label: RaterLabel
    is_first: bool = True


@dataclass(frozen=True, slots=True)
class Rated:
    """New rating of an answer.

    Attributes:
        experience: with the label that it is part of.
        rater: id of the user who gave it.
        plain: whether it is explicit feedback.
        reward: in [0, 1].
        expected: reward that was predicted before it was learned.
        known: how much of what could be known of it was, in [0, 1].
    """

    experience: Experience
    rater: str
    plain: bool
    reward: float
    expected: float
    known: float


def user_hash(user: str) -> str:
    """Name of a user in the service's own log: the same for the same user, and not the id."""
    return hashlib.sha256(user.encode()).hexdigest()[:12]


@dataclass(kw_only=True, eq=False)
class OnlineUpdater:
    """Learns the experiences that the store has taken in.

    Attributes:
        contexts: gets the contexts that are learned.
        settings: say how much is learned at once, and how much of it from one user.
        retention_s: time that predictions stay in the store, with their content and feedback.
        clock: UTC seconds since the epoch.
    """

    store: ExperienceStore
    state: LearnerState
    registry: VersionReader
    policies: PolicyCache
    builder: HeadBuilder
    contexts: RecentContexts
    metrics: LearnerMetrics
    settings: LearnerSettings
    retention_s: float
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self._nothing_old_s = -math.inf
        self._recent = RecentSatisfaction(self.metrics, self.registry.model)
        self._by_version = SatisfactionByVersion(self.metrics)
        self._restored = False

    @property
    def satisfaction(self) -> float | None:
        """Mean reward of the latest experiences; None if there are none."""
        return self._recent.mean

    def follow(self, live: Manifest) -> None:
        """Learn on the live version's trunk from now on; if the trunk changed, learn every experience anew on it."""
        learned, progress = self.state.learned, self.state.progress
        if learned is not None and learned.spaces == self.builder.spaces(live):
            return
        policy = self.policies.version(live.version)
        again = relearned(self.builder.empty(live), policy, self.store, self.store.save, up_to=progress.last_number)
        unlearned = max(0, progress.last_number - int(live.data.get("last_experience", 0)))
        self.state.save(learned=again, progress=replace(progress, refreshed=progress.changes - unlearned))
        self.contexts.clear()
        if learned is not None:
            self.metrics.rebuilds.inc()
            _log.info("reward state rebuilt on another trunk", version=live.version, experiences=progress.experiences)

    def learn(self, live: Manifest) -> int:
        """Learn the next chunk of experiences; returns its size, less than ``poll_limit`` if nothing more waits."""
        self._apply_commands(live)
        intake_stats = self.store.intake_stats()
        last = self.state.progress.last_number
        fresh = self.store.experiences(after=last, limit=self.settings.poll_limit)
        revisions = self.store.revisions(last, self.settings.poll_limit)
        reached: dict[str, Any] = {}
        if len(fresh) + len(revisions) < self.settings.poll_limit:
            reached = {
                "store_id": intake_stats.store_id,
                "batches": intake_stats.batches,
                "feedback": intake_stats.feedback,
                "last_feedback_id": intake_stats.last_feedback_id,
                "last_feedback_time_s": intake_stats.last_feedback_time_s,
            }
        if fresh or revisions:
            with self.metrics.learn_seconds.time():
                self._learn_each(live, fresh, revisions, reached)
        self._observe(intake_stats)
        return len(fresh) + len(revisions)

    def _apply_commands(self, live: Manifest) -> None:
        """Give users the trust levels that operators set since the last time."""
        learned, commands = self.state.learned, self.store.pending_commands()
        if learned is None or not commands:
            return
        trust_levels = {command.user_id: command.trust_level for command in commands}  # the last one of a user counts
        raters, progress = self.state.raters, self.state.progress
        for user, trust_level in trust_levels.items():
            raters = raters.set_trust_level(user, trust_level)
            _log.info("rater's trust level set by an operator", rater=user_hash(user), trust_level=trust_level)
        changes = self._without([user for user, level in trust_levels.items() if level == "quarantined"], [])
        contexts = self._contexts_as_learned([c.after for c in changes], live)
        self.state.save(
            LeaderCommit(refused=_refused(changes), commands=commands),
            learned=learned.subtract(labelled_contexts([(c.after, c.subtracts) for c in changes], contexts)).add(
                labelled_contexts([(c.after, c.adds) for c in changes], contexts)
            ),
            raters=raters,
            progress=_counting(progress, changes),
        )

    def label_silence(self) -> None:
        """Label decisions without feedback, where silence has a reward."""
        reward = self.settings.silence_reward
        if reward is None:
            return
        progress = self.state.progress
        quiet = self.store.decisions_since(
            progress.silence_place, self.clock() - self.settings.silence_after_s, self.settings.poll_limit
        )
        if not quiet:
            return
        histories = self.store.histories([decision.prediction_id for _, decision in quiet])
        silent = [
            LabelUpdate(decision.prediction_id, silence(decision, reward))
            for _, decision in quiet
            if not histories[decision.prediction_id].feedback and histories[decision.prediction_id].experience is None
        ]
        self.state.save(LeaderCommit(silent=silent), progress=replace(progress, silence_place=quiet[-1][0]))

    def forget_old(self) -> None:
        """Remove predictions older than ``retention_s`` from the store; what was learned from them stays learned.

        Old is what both the clock and the log's own time say is old: neither alone can be trusted with a deletion.
        """
        now_s = self.clock()
        if 0.0 <= now_s - self._nothing_old_s < _LOOK_INTERVAL_S:
            return
        before_s = min(now_s, self.store.intake_stats().log_time_s) - self.retention_s
        gone = self.store.forget(before_s, self.state.progress.last_number, self.settings.poll_limit)
        self.metrics.forgotten.inc(gone)
        if gone == 0:
            self._nothing_old_s = now_s

    def _learn_each(
        self,
        live: Manifest,
        fresh: Sequence[Experience],
        revisions: Sequence[LabelRevision],
        reached: Mapping[str, Any],
    ) -> None:
        """Learn the chunk together; where one experience makes that fail, it is found by halves and excluded.

        Args:
            reached: fields of the progress once all of the chunk is learned.
        """
        try:
            self._learn_chunk(live, fresh, revisions, replace(self.state.progress, **reached))
        except _OF_DATA as error:
            if len(fresh) + len(revisions) > 1:
                middle = (len(fresh) + len(revisions)) // 2
                ours = min(middle, len(fresh))
                theirs = middle - ours
                self._learn_each(live, fresh[:ours], revisions[:theirs], {})
                self._learn_each(live, fresh[ours:], revisions[theirs:], reached)
                return
            numbers = [*(e.number for e in fresh), *(r.experience.number for r in revisions)]
            if not numbers:
                raise
            problem = f"{type(error).__name__}: {str(error)[:_MAX_PROBLEM]}"
            _log.error("experience cannot be learned from", numbers=numbers, problem=problem)
            self.metrics.excluded.labels("failure").inc()
            progress = replace(self.state.progress, **reached)
            last = max([progress.last_number, *(e.number for e in fresh)])
            self.state.save(
                LeaderCommit(excluded=numbers, resolved=revisions), progress=replace(progress, last_number=last)
            )

    def _learn_chunk(
        self, live: Manifest, fresh: Sequence[Experience], revisions: Sequence[LabelRevision], progress: Progress
    ) -> None:
        """Learn the chunk, and save everything that changes in one transaction."""
        learned = self.state.learned
        assert learned is not None
        policy = self.policies.version(live.version)
        revised = [revision.experience for revision in revisions]
        features, made = self._features(policy, fresh, revised)
        contexts = contexts_on(policy, self.store, [*fresh, *revised], features)
        served = served_probabilities(fresh, features, self.store, self.policies)
        fresh = [replace(e, probabilities=served.get(e.number)) for e in fresh]
        said = [Said(e, label) for e in fresh for label in e.by_rater]
        said_later = [said for revision in revisions for said in _said_anew(revision)]
        refused, raters = self._admit(said + [each for each in said_later if each.is_first])
        fresh = [replace(e, refused=refused[e.number]) if e.number in refused else e for e in fresh]
        all_contexts = {e.number: contexts[_id(e)] for e in (*fresh, *revised) if _id(e) in contexts}
        places = {
            e.number: all_contexts[e.number].index(e.decision.action)
            for e in (*fresh, *revised)
            if e.number in all_contexts
        }
        expected = learned.expected(self.builder.settings.prior, all_contexts, places)
        new = {e.number: all_contexts[e.number] for e in fresh if e.number in all_contexts}
        slices = {number: context.slice for number, context in new.items()}
        running = self._compare(fresh, new, expected)
        if refused:
            heard = {e.number: e for e in fresh}
            said = [replace(each, experience=heard[each.experience.number]) for each in said]
        rated = _rated(said, places, expected)
        detector = self._detect_drift(rated, slices)
        raters, quarantined = self._update_raters(raters, [*rated, *_rated(said_later, places, expected)])
        changes = [ExperienceChange(None, experience) for experience in fresh]
        for revision in revisions:
            former = revision.experience
            not_heard = tuple(dict.fromkeys((*former.refused, *refused.get(former.number, ()))))
            changes.append(ExperienceChange(former, replace(former, label=revision.label, refused=not_heard)))
        changes = self._without(quarantined, changes)
        contexts |= self._contexts_as_learned([c.after for c in changes if _id(c.after) not in features], live)
        subtracted = labelled_contexts([(c.after, c.subtracts) for c in changes], contexts)
        added = labelled_contexts([(c.after, c.adds) for c in changes], contexts)
        self.state.save(
            LeaderCommit(
                features=made,
                probabilities=served,
                slices=slices,
                refused=_refused(changes),
                resolved=revisions,
            ),
            learned=learned.subtract(subtracted).add(added),
            raters=raters,
            detector=detector,
            progress=replace(
                _counting(progress, changes),
                last_number=max([progress.last_number, *(e.number for e in fresh)]),
                n_users=len(raters.users),
            ),
            running=running,
        )
        self.metrics.suspected_raters.set(sum(rater.suspected for rater in raters.users.values()))
        self.contexts.extend([each.context for each in added])
        self._remember(fresh, rated)
        for user in {each.rater for each in rated if raters[each.rater].suspected}:
            _log.warning("rater suspected and left to people", rater=user_hash(user), group=raters[user].group)
        for user in quarantined:
            self.metrics.quarantines.inc()
            _log.warning("rater quarantined", rater=user_hash(user), reliability=round(raters[user].reliability, 3))

    def _admit(self, said: Sequence[Said]) -> tuple[Mapping[int, tuple[str, ...]], Raters]:
        """Raters who have had their share, or are in quarantine, by number of the experience that they rated.

        Whose decision it is does not matter: one rater has one share, whoever asked.
        """
        before = raters = self.state.raters
        users = [each.label.rater for each in said]
        n_users = len(raters.users.keys() | set(users))
        admitted, raters = raters.admit(users, fair_cap(self.settings.user_cap, n_users, USER_SHARES))
        refused: dict[int, tuple[str, ...]] = {}
        for each, user, counts in zip(said, users, admitted, strict=True):
            if not counts:
                why = "quarantine" if raters[user].trust_level == "quarantined" else "user_cap"
                if before.refuses_newcomers and before[user].is_newcomer:
                    why = "newcomer"
                self.metrics.excluded.labels(why).inc()
                number = each.experience.number
                refused[number] = (*refused.get(number, ()), user)
        return refused, raters

    def _features(
        self, policy: LoadedPolicy, fresh: Sequence[Experience], revised: Sequence[Experience]
    ) -> tuple[dict[str, Features], dict[str, Features]]:
        """Features on the live trunk by prediction id, and which of them had to be made from content.

        Evidence of revised experiences is subtracted at the features it was added at; what had none then gets none now.
        """
        stored = stored_features(policy.manifest.trunk_digest, self.store, [*fresh, *revised])
        made = made_features(policy, self.store, [e for e in fresh if _id(e) not in stored])
        return stored | made, made

    def _contexts_as_learned(self, experiences: Sequence[Experience], live: Manifest) -> dict[str, Context]:
        """Contexts on the live trunk, by prediction id, of those that have stored features."""
        if not experiences:
            return {}
        features = stored_features(live.trunk_digest, self.store, experiences)
        return contexts_on(self.policies.version(live.version), self.store, experiences, features)

    def _update_raters(self, raters: Raters, rated: Sequence[Rated]) -> tuple[Raters, Sequence[str]]:
        """Reliability of the raters, against what was expected; and who goes into quarantine.

        Feedback beyond a user's share counts too, and so does feedback that takes the place of former feedback: it
        tells no less about the user.
        """
        said = [each for each in rated if each.plain and raters[each.rater].trust_level != "quarantined"]
        return raters.observe(
            [each.rater for each in said],
            np.array([each.reward for each in said], np.float64),
            np.array([each.expected for each in said], np.float64),
            np.array([each.known for each in said], np.float64),
            [_group_of(each) for each in said],
        )

    def _detect_drift(self, rated: Sequence[Rated], slices: Mapping[int, str]) -> DriftDetector:
        """Detector of changes after what users said of the answers, against what was expected.

        Args:
            slices: by experience number.
        """
        detector = self.state.detector
        if not self.settings.drift_detection:
            return detector
        said = [
            each
            for each in rated
            if each.plain and each.experience.counts and each.rater not in each.experience.refused
        ]
        return detector.observe(
            [slices[each.experience.number] for each in said],
            [each.experience.number for each in said],
            [each.rater for each in said],
            np.array([each.reward for each in said], np.float64),
            np.array([each.expected for each in said], np.float64),
            np.array([each.known for each in said], np.float64),
            fair_cap(self.settings.user_cap, self.state.progress.n_users, USER_SHARES),
        )

    def _without(self, users: Sequence[str], changes: Sequence[ExperienceChange]) -> list[ExperienceChange]:
        """These changes, with all that these users said, of whosever decisions, refused."""
        changed = {c.after.number: c for c in changes}
        for user in users:
            for change in changes:
                number = change.after.number
                if user in (each.rater for each in change.after.by_rater):
                    changed[number] = _refusing(changed[number], user)
            n_old = 0
            for e in self.store.experiences(up_to=self.state.progress.last_number, rater=user):
                if user not in e.refused:
                    n_old += e.number not in changed
                    changed[e.number] = _refusing(changed.get(e.number) or ExperienceChange(e, e), user)
            self.metrics.excluded.labels("quarantine").inc(n_old)
        return list(changed.values())

    def _compare(
        self, fresh: Sequence[Experience], contexts: Mapping[int, Context], expected: Mapping[int, Expected]
    ) -> RunningComparison:
        return running_comparison.update(
            self.state.running,
            [Compared(e, contexts[e.number]) for e in fresh if e.number in contexts],
            {number: each.reward for number, each in expected.items()},
            self.registry,
            self.policies,
            n_users=self.state.progress.n_users,
        )

    def _remember(self, fresh: Sequence[Experience], rated: Sequence[Rated]) -> None:
        """Update what the metrics show of the latest experiences."""
        first = min([self.state.progress.last_number + 1, *(e.number for e in fresh)])
        self._restore(up_to=first - 1)
        self._by_version.add(fresh, self.clock())
        self._recent.add(fresh, [(each.expected, each.reward) for each in rated])

    def _restore(self, up_to: int) -> None:
        """Show again what users thought before this start, once."""
        if not self._restored:
            before = self.store.experiences(after=max(0, up_to - RESTORED), up_to=up_to)
            self._by_version.add(before, self.clock())
            self._recent.add(before)
            self._restored = True

    def _observe(self, intake_stats: IntakeStats) -> None:
        self._restore(up_to=self.state.progress.last_number)
        self.metrics.experiences.set(self.state.progress.experiences)
        self.metrics.outdated_experiences.set(self.state.progress.outdated)
        self.metrics.last_drift.set(self.state.progress.last_drift_time_s)
        self.metrics.dynamic_experiences.set(self.state.progress.dynamic_experiences)
        self.metrics.waiting.set(intake_stats.waiting)
        self.metrics.discarded.set(intake_stats.discarded)
        if intake_stats.feedback:
            self.metrics.joined_share.set(1.0 - intake_stats.waiting / intake_stats.feedback)
        report = self.state.running.comparison.report()
        self.metrics.e_value.labels("gain").set(report.e_value_gain)
        self.metrics.e_value.labels("harm").set(report.e_value_harm)
        self.metrics.comparison_n.set(report.n)


def _id(experience: Experience) -> str:
    return experience.decision.prediction_id


def _group_of(rated: Rated) -> str:
    """User group of the rater; "" if it is not known, as where another user asked."""
    decision = rated.experience.decision
    return decision.user_group if decision.user_id == rated.rater else ""


def _said_anew(revision: LabelRevision) -> list[Said]:
    """What raters say by the revision that they had not said before."""
    former = {each.rater: each for each in revision.experience.by_rater}
    asker, said = revision.experience.decision.user_id, []
    for each in rater_labels(revision.label, asker):
        if each.rater not in revision.experience.refused and each != former.get(each.rater):
            after = replace(revision.experience, label=revision.label)
            said.append(Said(after, each, is_first=each.rater not in former))
    return said


def _refusing(change: ExperienceChange, user: str) -> ExperienceChange:
    """The change, with what the user said refused."""
    refused = change.after.refused
    return change if user in refused else replace(change, after=replace(change.after, refused=(*refused, user)))


def _refused(changes: Sequence[ExperienceChange]) -> dict[int, tuple[str, ...]]:
    """Refused raters by experience number, where they are others than before."""
    before = {c.after.number: () if c.before is None else c.before.refused for c in changes}
    return {c.after.number: c.after.refused for c in changes if c.after.refused != before[c.after.number]}


def _rated(said: Sequence[Said], places: Mapping[int, int | None], expected: Mapping[int, Expected]) -> list[Rated]:
    """What was said of answers that are still in the action set.

    Args:
        places: of the answers in their action sets, by experience number; as ``expected``.
    """
    rated = []
    for each in said:
        experience, action = each.experience, each.experience.decision.action
        place = places.get(experience.number)
        if place is not None and action in each.label.rewards:
            of_actions = expected[experience.number]
            plain, reward = speaks_plainly(each.label, action), each.label.rewards[action]
            value = float(of_actions.reward[place])
            rated.append(Rated(experience, each.label.rater, plain, reward, value, of_actions.known))
    return rated


def _counting(progress: Progress, changes: Sequence[ExperienceChange]) -> Progress:
    """Progress with the changes counted."""
    balances = [change.balance for change in changes]
    dynamic = [balance for balance, c in zip(balances, changes, strict=True) if c.after.decision.dynamic]
    return replace(
        progress,
        experiences=progress.experiences + sum(balances),
        dynamic_experiences=progress.dynamic_experiences + sum(dynamic),
        changes=progress.changes + len(changes),
    )

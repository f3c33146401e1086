"""The learning step of the leader: what was taken in → reward state and running comparison, a chunk at a time.

Experiences are learned in the order of their numbers; one whose label changed is forgotten as it was and learned as
it is. Knows nothing about the log, nor about when heads are made from what is learned.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import structlog

from plaudit.core.events import Features
from plaudit.core.experience import Experience, Label
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import ExperienceStore, IntakeStats, LabelRevision, LabelUpdate, LeaderCommit
from plaudit.learner.evaluation import running_comparison as runnings
from plaudit.learner.evaluation.off_policy import Compared, speaks_plainly
from plaudit.learner.evaluation.running_comparison import RunningComparison
from plaudit.learner.features.evidence import Listed, stack
from plaudit.learner.features.features import lists_of, rebuilt_state, said_by
from plaudit.learner.features.head_builder import HeadBuilder
from plaudit.learner.features.policies import PolicyCache
from plaudit.learner.ingest.join import silence
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.online.contexts import Contexts, features_of, served_probabilities
from plaudit.learner.online.satisfaction import SatisfactionByVersion
from plaudit.learner.progress import Progress
from plaudit.learner.state import LearnerState
from plaudit_models.bandit.dynamic_actions import expected_rewards
from plaudit_models.bandit.features import Float64, features
from plaudit_models.bandit.reward_model import posterior
from plaudit_models.bundle import Manifest
from plaudit_models.evaluation.calibration import reliability
from plaudit_models.evaluation.raters import Raters, fair_cap

RECENT_REWARDS: Final = 200
RECALLED: Final = 2_000
"""Of the experiences before a start, so many are shown by version again."""

_LOOK_INTERVAL_S: Final = 1.0
"""How long to wait before looking for old predictions again where there were none."""
USER_SHARES: Final = 5.0
"""Where there are few users, nobody may have more than this many equal shares of what is learned."""

_log = structlog.get_logger("plaudit.learner")


@dataclass(frozen=True, slots=True)
class Change:
    """One experience before and after a step; ``before`` is None when it is new."""

    before: Experience | None
    after: Experience

    @property
    def subtracts(self) -> Label | None:
        """What the reward state must forget."""
        return None if self.before is None or self.before.excluded else self.before.label

    @property
    def adds(self) -> Label | None:
        """What the reward state must learn."""
        return None if self.after.excluded else self.after.label


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What the reward model expected of one experience before it was learned.

    Attributes:
        reward: shape ``[a]``, or ``[k]`` of its dynamic actions.
        known: how much of what could be known was, in [0, 1], the same shape.
    """

    reward: Float64
    known: Float64


def user_hash(user: str) -> str:
    """Name of a user in the service's own log: the same for the same user, and not the id."""
    return hashlib.sha256(user.encode()).hexdigest()[:12]


class Learning:
    """Learns what the store has taken in.

    Args:
        store: which this learner leads.
        knowledge: what it learns.
        registry, versions, maker, metrics: as the learner's.
        contexts: gets the contexts that are learned.
        limit: the most experiences learned at once.
        user_cap: the largest share of the experiences that one user's are learned from, in (0, 1].
        silence_reward: reward in [0, 1] of a decision nobody said anything about; None: silence means nothing.
        silence_after_s: how long nobody must have said anything.
        retention_s: how long predictions stay in the store.
        clock: UTC seconds since the epoch.
    """

    def __init__(
        self,
        *,
        store: ExperienceStore,
        knowledge: LearnerState,
        registry: ModelRegistry,
        versions: PolicyCache,
        maker: HeadBuilder,
        contexts: Contexts,
        metrics: LearnerMetrics,
        limit: int,
        user_cap: float,
        silence_reward: float | None,
        silence_after_s: float,
        retention_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._knowledge = knowledge
        self._registry = registry
        self._versions = versions
        self._maker = maker
        self._contexts = contexts
        self._metrics = metrics
        self._limit = limit
        self._user_cap = user_cap
        self._silence_reward = silence_reward
        self._silence_after_s = silence_after_s
        self._retention_s = retention_s
        self._clock = clock
        self._nothing_old_s = -math.inf
        self._rewards: deque[float] = deque(maxlen=RECENT_REWARDS)
        self._predicted: deque[float] = deque(maxlen=RECENT_REWARDS)
        self._by_version: SatisfactionByVersion | None = None

    @property
    def satisfaction(self) -> float | None:
        """Mean reward of the latest experiences; None if there are none."""
        return float(np.mean(self._rewards)) if self._rewards else None

    def stand_on(self, live: Manifest) -> None:
        """Learn on the live version's trunk from now on; where that is another one, recount every experience on it."""
        space, dynamic_space = self._maker.space(live), self._maker.dynamic_space(live)
        learned, progress = self._knowledge.learned, self._knowledge.progress
        if learned is not None and learned.spaces == (space, dynamic_space):
            return
        version = self._versions.version(live.version)
        rebuilt = rebuilt_state(
            version, self._store, space, dynamic_space, self._store.save, up_to=progress.last_number
        )
        learned_by_live = int(live.data.get("last_experience", 0))
        unlearned = max(0, progress.last_number - learned_by_live)
        self._knowledge.save(learned=rebuilt, progress=replace(progress, refreshed=progress.changes - unlearned))
        self._contexts.clear()
        if learned is not None:
            self._metrics.rebuilds.inc()
            _log.info("reward state rebuilt on another trunk", version=live.version, experiences=progress.experiences)

    def learn(self, live: Manifest) -> int:
        """The next chunk of experiences; returns how many they were, fewer than ``limit`` if that was all for now."""
        self._obey(live)
        intake_stats = self._store.intake_stats()
        progress = self._knowledge.progress
        fresh = self._store.experiences(after=progress.last_number, limit=self._limit)
        revisions = self._store.revisions(progress.last_number, self._limit)
        if len(fresh) + len(revisions) < self._limit:
            progress = replace(
                progress,
                batches=intake_stats.batches,
                feedback=intake_stats.feedback,
                last_feedback_id=intake_stats.last_feedback_id,
                last_feedback_time_s=intake_stats.last_feedback_time_s,
            )
        if fresh or revisions:
            with self._metrics.learn_seconds.time():
                self._take_in(live, fresh, revisions, progress)
        self._observe(intake_stats)
        return len(fresh) + len(revisions)

    def _obey(self, live: Manifest) -> None:
        """Do with raters what people have ordered since the last time."""
        learned, commands = self._knowledge.learned, self._store.pending_commands()
        if learned is None or not commands:
            return
        trust_levels = {command.user_id: command.trust_level for command in commands}  # the last one of a user counts
        raters, progress = self._knowledge.raters, self._knowledge.progress
        for user, trust_level in trust_levels.items():
            raters = raters.set_trust_level(user, trust_level)
            _log.info("rater's trust level set by an operator", rater=user_hash(user), trust_level=trust_level)
        changes = self._without(
            [user for user, trust_level in trust_levels.items() if trust_level == "quarantined"], []
        )
        known = self._store.features([_id(c) for c in changes], live.trunk_digest)
        listed = self._lists([c.after for c in changes], known, live)
        forget = [said_by(c.after, c.subtracts, known, listed) for c in changes]
        index = {action: i for i, action in enumerate(live.spec.actions)}
        self._knowledge.save(
            LeaderCommit(excluded=[c.after.number for c in changes], commands=commands),
            learned=learned.subtract([each for each in forget if each is not None], index),
            raters=raters,
            progress=replace(
                progress,
                experiences=progress.experiences + _balance(changes),
                dynamic_experiences=progress.dynamic_experiences + _balance(_over_dynamic_actions(changes)),
                changes=progress.changes + len(changes),
            ),
        )

    def judge_silence(self) -> None:
        """Give decisions that nobody said anything about their reward, where silence has one."""
        reward = self._silence_reward
        if reward is None:
            return
        progress = self._knowledge.progress
        quiet = self._store.decisions_since(progress.silence_place, self._clock() - self._silence_after_s, self._limit)
        if not quiet:
            return
        histories = self._store.histories([decision.prediction_id for _, decision in quiet])
        silent = [
            LabelUpdate(decision.prediction_id, silence(decision, reward))
            for _, decision in quiet
            if not histories[decision.prediction_id].feedback and histories[decision.prediction_id].experience is None
        ]
        self._knowledge.save(LeaderCommit(silent=silent), progress=replace(progress, silence_place=quiet[-1][0]))

    def forget_old(self) -> None:
        """Let predictions leave the store whose time is up; what was learned from them stays learned."""
        now_s = self._clock()
        if now_s - self._nothing_old_s < _LOOK_INTERVAL_S:
            return
        gone = self._store.forget(now_s - self._retention_s, self._knowledge.progress.last_number, self._limit)
        self._metrics.forgotten.inc(gone)
        if gone == 0:
            self._nothing_old_s = now_s

    def _take_in(
        self, live: Manifest, fresh: Sequence[Experience], revisions: Sequence[LabelRevision], progress: Progress
    ) -> None:
        """Learn the chunk, and save everything that this changes at once."""
        learned = self._knowledge.learned
        assert learned is not None
        known, made = features_of(fresh, [r.experience for r in revisions], live, self._store, self._versions)
        listed = self._lists([*fresh, *(r.experience for r in revisions)], known, live)
        noted = served_probabilities(fresh, known, self._store, self._versions)
        fresh = [replace(e, probabilities=noted.get(e.number)) for e in fresh]
        fresh, raters = self._admit(fresh)
        expected = self._predict(fresh, known, listed)
        running = self._compare(fresh, known, listed, expected)
        raters, caught = self._hear(raters, fresh, expected, live)
        changes = [Change(None, experience) for experience in fresh]
        changes += [Change(r.experience, replace(r.experience, label=r.label)) for r in revisions]
        changes = self._without(caught, changes)
        old = [c.after for c in changes if _id(c) not in known]
        known |= self._store.features([e.decision.prediction_id for e in old], live.trunk_digest)
        listed |= self._lists(old, known, live)
        index = {action: i for i, action in enumerate(live.spec.actions)}
        forget = [said_by(c.after, c.subtracts, known, listed) for c in changes]
        learn = [each for c in changes if (each := said_by(c.after, c.adds, known, listed)) is not None]
        learned = learned.subtract([each for each in forget if each is not None], index).add(learn, index)
        self._knowledge.save(
            LeaderCommit(
                features=made,
                probabilities=noted,
                excluded=[c.after.number for c in changes if c.after.excluded],
                resolved=revisions,
            ),
            learned=learned,
            raters=raters,
            progress=replace(
                progress,
                last_number=max([progress.last_number, *(e.number for e in fresh)]),
                experiences=progress.experiences + _balance(changes),
                dynamic_experiences=progress.dynamic_experiences + _balance(_over_dynamic_actions(changes)),
                changes=progress.changes + len(changes),
                n_users=len(raters.users),
            ),
            running=running,
        )
        self._contexts.extend(
            [each.features for each in learn if each.listed is None],
            [each.listed.seen for each in learn if each.listed is not None],
        )
        self._remember(fresh, expected, live)
        for user in caught:
            self._metrics.quarantines.inc()
            _log.warning("rater quarantined", rater=user_hash(user), reliability=round(raters[user].reliability, 3))

    def _admit(self, fresh: Sequence[Experience]) -> tuple[Sequence[Experience], Raters]:
        """Set aside new experiences of users who have had their share, or are in quarantine."""
        raters = self._knowledge.raters
        users = [e.decision.user_id for e in fresh]
        n_users = len(raters.users.keys() | set(users))
        admitted, raters = raters.admit(users, fair_cap(self._user_cap, n_users, USER_SHARES))
        for user, counts in zip(users, admitted, strict=True):
            if not counts:
                why = "quarantine" if raters[user].trust_level == "quarantined" else "user_cap"
                self._metrics.excluded.labels(why).inc()
        return [e if counts else replace(e, excluded=True) for e, counts in zip(fresh, admitted, strict=True)], raters

    def _lists(
        self, experiences: Sequence[Experience], known: Mapping[str, Features], live: Manifest
    ) -> dict[str, Listed]:
        """Of those that were between dynamic actions, as live sees them, by prediction id."""
        between = [e for e in experiences if e.decision.dynamic_actions]
        return lists_of(self._versions.version(live.version), self._store, between, known) if between else {}

    def _predict(
        self, fresh: Sequence[Experience], known: Mapping[str, Features], listed: Mapping[str, Listed]
    ) -> Mapping[int, Expected]:
        """Rewards predicted before they are learned, by experience number."""
        reward, dynamic_actions, prior = (
            self._knowledge.reward,
            self._knowledge.dynamic_actions,
            self._maker.settings.prior,
        )
        assert reward is not None
        between = (
            {}
            if dynamic_actions is None
            else {
                e.number: Expected(*expected_rewards(dynamic_actions, prior, listed[e.decision.prediction_id].seen))
                for e in fresh
                if e.decision.prediction_id in listed
            }
        )
        rows = [e for e in fresh if e.decision.prediction_id in known and not e.decision.dynamic_actions]
        if not rows:
            return between
        phi = features(reward.space, *stack([known[e.decision.prediction_id] for e in rows]))
        belief = posterior(reward, prior)
        predicted, variance = belief.predict(phi)
        told = np.clip(1.0 - variance / belief.prior_variance(phi), 0.0, 1.0)
        return between | {e.number: Expected(q, c) for e, q, c in zip(rows, predicted, told, strict=True)}

    def _hear(
        self, raters: Raters, fresh: Sequence[Experience], expected: Mapping[int, Expected], live: Manifest
    ) -> tuple[Raters, Sequence[str]]:
        """What users say about the answers they were given, against what was expected; and who goes into quarantine.

        What is beyond a user's share is heard too: it tells no less about the user.
        """
        said = [
            e
            for e in fresh
            if e.number in expected
            and speaks_plainly(e)
            and _place(e, live) is not None
            and raters[e.decision.user_id].trust_level != "quarantined"
        ]
        action = [_place(e, live) for e in said]
        return raters.hear(
            [e.decision.user_id for e in said],
            np.array([e.reward for e in said], np.float64),
            np.array([expected[e.number].reward[k] for e, k in zip(said, action, strict=True)], np.float64),
            np.array([expected[e.number].known[k] for e, k in zip(said, action, strict=True)], np.float64),
        )

    def _without(self, users: Sequence[str], changes: Sequence[Change]) -> list[Change]:
        """These changes, with all that these users ever said set aside."""
        left = [
            replace(c, after=replace(c.after, excluded=True)) if c.after.decision.user_id in users else c
            for c in changes
        ]
        mentioned = {c.after.number for c in changes}
        for user in users:
            learned = self._store.experiences(up_to=self._knowledge.progress.last_number, user_id=user)
            old = [e for e in learned if not e.excluded and e.number not in mentioned]
            left += [Change(e, replace(e, excluded=True)) for e in old]
            self._metrics.excluded.labels("quarantine").inc(len(old))
        return left

    def _compare(
        self,
        fresh: Sequence[Experience],
        known: Mapping[str, Features],
        listed: Mapping[str, Listed],
        expected: Mapping[int, Expected],
    ) -> RunningComparison:
        rows = [
            Compared(e, known[e.decision.prediction_id], listed.get(e.decision.prediction_id))
            for e in fresh
            if e.decision.prediction_id in known and not e.excluded
        ]
        return runnings.update(
            self._knowledge.running,
            rows,
            {number: row.reward for number, row in expected.items()},
            self._registry,
            self._versions,
            n_users=self._knowledge.progress.n_users,
        )

    def _remember(self, fresh: Sequence[Experience], expected: Mapping[int, Expected], live: Manifest) -> None:
        if self._by_version is None:
            self._by_version = SatisfactionByVersion(self._metrics)
            first = min([self._knowledge.progress.last_number + 1, *(e.number for e in fresh)])
            before = self._store.experiences(after=max(0, first - 1 - RECALLED), up_to=first - 1)
            self._by_version.hear(before, self._clock())
        self._by_version.hear(fresh, self._clock())
        for experience in fresh:
            action = _place(experience, live)
            if experience.reward is not None and experience.number in expected and action is not None:
                self._rewards.append(experience.reward)
                self._predicted.append(float(np.clip(expected[experience.number].reward[action], 0.0, 1.0)))

    def _observe(self, intake_stats: IntakeStats) -> None:
        if self._rewards:
            self._metrics.satisfaction.set(float(np.mean(self._rewards)))
            self._metrics.predicted.set(float(np.mean(self._predicted)))
            self._metrics.calibration_error.set(reliability(np.array(self._predicted), np.array(self._rewards)).error)
        self._metrics.experiences.set(self._knowledge.progress.experiences)
        self._metrics.dynamic_experiences.set(self._knowledge.progress.dynamic_experiences)
        self._metrics.waiting.set(intake_stats.waiting)
        self._metrics.discarded.set(intake_stats.discarded)
        if intake_stats.feedback:
            self._metrics.joined_share.set(1.0 - intake_stats.waiting / intake_stats.feedback)
        report = self._knowledge.running.comparison.report()
        self._metrics.e_value.labels("gain").set(report.e_value_gain)
        self._metrics.e_value.labels("harm").set(report.e_value_harm)
        self._metrics.comparison_n.set(report.n)


def _id(change: Change) -> str:
    return change.after.decision.prediction_id


def _balance(changes: Sequence[Change]) -> int:
    """How many more experiences are learned from than before."""
    return sum((c.adds is not None) - (c.subtracts is not None) for c in changes)


def _over_dynamic_actions(changes: Sequence[Change]) -> Sequence[Change]:
    return [c for c in changes if c.after.decision.dynamic_actions]


def _place(experience: Experience, live: Manifest) -> int | None:
    """Of the served answer among the dynamic actions or actions; None if that action is gone."""
    served = experience.decision
    if served.dynamic_actions:
        return served.dynamic_actions.index(served.action)
    return live.spec.action_index(served.action) if live.spec.has_action(served.action) else None

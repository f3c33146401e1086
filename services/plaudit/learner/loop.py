"""The learner: reads the log, learns, refreshes the head, and takes refreshes back that do harm.

One step, top to bottom: poll → join → learn → save → commit → act on the running comparison → refresh the head if due →
fine-tuning. All effects of a batch and the log cursor are saved in one transaction, before the log hears of it;
whatever is killed in between is done again from what was saved, and changes nothing twice.

Imports no torch; fine-tuning happens in a job of its own (finetune.py, job.py).
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog

from plaudit.core.errors import Unavailable, UnknownVersion
from plaudit.core.events import Decision, Features, Topic
from plaudit.core.experience import Experience, Served
from plaudit.core.ports import Changes, Cursor, EventLog, EventReader, ExperienceStore, ModelRegistry, Record
from plaudit.core.rollout import Change as RolloutChange
from plaudit.core.rollout import Rollout, confirm, refresh, revert
from plaudit.learner import progress as progresses
from plaudit.learner import running as runnings
from plaudit.learner.compare import Compared
from plaudit.learner.evidence import evidence_of, stack
from plaudit.learner.finetune import Finetuning, served_key
from plaudit.learner.intake import Change, Joined, Read, join_all, read
from plaudit.learner.join import silence
from plaudit.learner.metrics import LearnerMetrics
from plaudit.learner.progress import Progress, progress_from_bytes
from plaudit.learner.rebuild import features_on, rebuilt_state
from plaudit.learner.refresh import HeadMaker, publish_refresh
from plaudit.learner.rollouts import ACTOR, move
from plaudit.learner.running import Running, running_from_bytes
from plaudit.learner.status import StatusFile
from plaudit.learner.versions import Versions, allowed_mask
from plaudit_models.bundle import Manifest
from plaudit_models.features import Float64, features
from plaudit_models.gate import GateRules, new_comparison
from plaudit_models.raters import UserTally
from plaudit_models.reward_model import RewardState, empty_state, posterior, state_from_bytes

GROUP: Final = "learner"
TOPICS: Final = (Topic.DECISIONS, Topic.FEEDBACK)
REWARD_STATE: Final = "reward-state"
RECENT_CONTEXTS: Final = 256
"""Contexts on which the KL of a refresh is measured."""
RECENT_REWARDS: Final = 200

_IDLE_S: Final = 0.2
_BACKOFF_S: Final = 1.0
_STATUS_INTERVAL_S: Final = 1.0

_log = structlog.get_logger("plaudit.learner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """When the learner does what.

    Attributes:
        batch: new experiences after which the head is refreshed.
        max_wait_s: the head is refreshed with fewer after this long.
        poll_limit: the most records read at once.
        silence_reward: reward in [0, 1] of a decision nobody said anything about; None: silence means nothing.
        silence_after_s: how long nobody must have said anything.
        user_cap: the largest share of the experiences that one user's are learned from, in (0, 1].
        versions_kept: dead head refreshes kept in the registry.
    """

    batch: int = 64
    max_wait_s: float = 2.0
    poll_limit: int = 512
    silence_reward: float | None = None
    silence_after_s: float = 300.0
    user_cap: float = 1.0
    versions_kept: int = 20


class Learner:
    """Learns from the log and publishes what it learned.

    Args:
        log: decisions and feedback come from here; dead letters go there.
        store: this learner is its only writer.
        registry: of the model that is learned.
        versions: runs the registry's versions.
        maker: makes heads.
        rules: of the running comparison.
        pace: when it does what.
        work_dir: for folders in the making; best on the registry's file system.
        finetuning: starts and judges fine-tuning jobs; None: there are none.
        metrics: where to count.
        status: where to say how things stand.
        clock: UTC seconds since the epoch.
    """

    def __init__(
        self,
        *,
        log: EventLog,
        store: ExperienceStore,
        registry: ModelRegistry,
        versions: Versions,
        maker: HeadMaker,
        rules: GateRules,
        pace: Pace,
        work_dir: Path,
        finetuning: Finetuning | None,
        metrics: LearnerMetrics,
        status: StatusFile | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._store = store
        self._registry = registry
        self._versions = versions
        self._maker = maker
        self._rules = rules
        self._pace = pace
        self._work_dir = work_dir
        self._finetuning = finetuning
        self._metrics = metrics
        self._status = status
        self._clock = clock
        self._reader: EventReader | None = None
        self._load()

    def run(self, stop: threading.Event) -> None:
        """Step until told to stop. What is away for a while is waited for; any other failure is raised."""
        while not stop.is_set():
            try:
                busy = self.step()
            except Unavailable as problem:
                self._metrics.failures.inc()
                _log.error("step given up, will be done again", problem=str(problem), again_in_s=_BACKOFF_S)
                stop.wait(_BACKOFF_S)
                self._load()
            else:
                if not busy and self._live is None:
                    stop.wait(_IDLE_S)

    def step(self) -> bool:
        """One turn of the loop; False if there was nothing to read."""
        self._follow_rollout()
        if self._live is None:
            return False
        records = self._poll()
        if records:
            self._learn(records)
        else:
            self._learn_silence()
        self._act_on_comparison()
        self._refresh_if_due(caught_up=len(records) < self._pace.poll_limit)
        if self._finetuning is not None and self._live is not None:
            self._finetuning.step(self._live, self._progress)
        if self._status is not None:
            self._status.write(self.report)
        return bool(records)

    def close(self) -> None:
        """Let go of the log. A fine-tuning job goes on, and is found again by the next learner."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # --- what is remembered ------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Begin, or begin again, from what was saved."""
        self.close()
        self._positions: dict[str, Cursor] = json.loads(self._store.cursor() or "{}")
        self._reader = self._log.reader(GROUP, TOPICS, start=lambda: self._positions)
        self._progress: Progress = progress_from_bytes(self._store.recall(progresses.KEY))
        saved = self._store.recall(REWARD_STATE)
        self._reward: RewardState | None = None if saved is None else state_from_bytes(saved)
        self._running: Running = running_from_bytes(self._store.recall(runnings.KEY), self._rules)
        self._live: Manifest | None = None
        self._rollout: Rollout | None = None
        self._recent: deque[Features] = deque(maxlen=RECENT_CONTEXTS)
        self._rewards: deque[float] = deque(maxlen=RECENT_REWARDS)
        self._predicted: deque[float] = deque(maxlen=RECENT_REWARDS)
        self._pending_since_s: float | None = None
        self._lag_checked_s = -_STATUS_INTERVAL_S
        if self._finetuning is not None:
            self._finetuning.load()

    def report(self) -> dict[str, Any]:
        """How things stand, JSON-ready."""
        rollout = self._rollout
        return {
            "time_s": self._clock(),
            "live": None if rollout is None else rollout.live,
            "gated": None if rollout is None else rollout.gated,
            "pinned": rollout is not None and rollout.pinned,
            "experiences": self._progress.experiences,
            "feedback": self._progress.feedback,
            "waiting": self._progress.waiting,
            "discarded": self._progress.discarded,
            "pending": self._progress.pending,
            "satisfaction_recent": float(np.mean(self._rewards)) if self._rewards else None,
            "comparison": self._running.comparison.report().to_dict(),
            "finetune": None if self._finetuning is None else self._finetuning.report(),
        }

    @property
    def progress(self) -> Progress:
        """What was taken in so far."""
        return self._progress

    @property
    def reward_state(self) -> RewardState | None:
        """What the reward model has learned; None before any version was live."""
        return self._reward

    @property
    def running(self) -> Running:
        """The running comparison."""
        return self._running

    # --- the rollout -------------------------------------------------------------------------------------------------

    def _follow_rollout(self) -> None:
        """Notice what serves, whoever changed it; a live version on another trunk has the reward state rebuilt."""
        rollout = self._registry.rollout()
        if rollout == self._rollout:
            return
        self._rollout = rollout
        self._metrics.live_version.set(rollout.live or 0)
        self._metrics.gated_version.set(rollout.gated or 0)
        if rollout.live is None:
            self._live = None
            return
        self._live = self._registry.manifest(rollout.live)
        if self._reward is None or self._reward.space != self._maker.space(self._live):
            self._rebuild(self._live)
        if (rollout.gated or 0) != self._running.gated:
            self._restart_comparison(rollout.gated or 0, after_version=rollout.gated or 0)

    def _rebuild(self, live: Manifest) -> None:
        """Stand on the live version's trunk: recount every experience at its features."""
        first = self._reward is None
        version = self._versions.version(live.version)
        state = rebuilt_state(version, self._store, self._maker.space(live), self._store.save)
        learned_by_live = int(live.data.get("last_experience", 0))
        unlearned = max(0, self._progress.last_number - learned_by_live)
        progress = replace(self._progress, refreshed=self._progress.changes - unlearned)
        self._store.save(Changes(memory={REWARD_STATE: state.to_bytes(), progresses.KEY: progress.to_bytes()}))
        self._reward, self._progress = state, progress
        self._recent.clear()
        if not first:
            self._metrics.rebuilds.inc()
            _log.info("reward state rebuilt on another trunk", version=live.version, experiences=progress.experiences)

    def _contexts(self, live: Manifest) -> Sequence[Features]:
        """The latest contexts on the live trunk; after a start they come from the store."""
        if not self._recent:
            after = max(0, self._progress.last_number - RECENT_CONTEXTS)
            latest = self._store.experiences(after=after)
            found = features_on(self._versions.version(live.version), self._store, latest, self._store.save)
            self._recent.extend(found[e.served.prediction_id] for e in latest if e.served.prediction_id in found)
        return list(self._recent)

    # --- learning ----------------------------------------------------------------------------------------------------

    def _poll(self) -> Sequence[Record]:
        """Wait for records, but no longer than until a refresh is due."""
        wait_s = _IDLE_S
        if self._pending_since_s is not None:
            due_s = self._pending_since_s + self._pace.max_wait_s - time.monotonic()
            wait_s = min(wait_s, max(0.0, due_s))
        if self._finetuning is not None and self._finetuning.busy:
            wait_s = 0.0
        assert self._reader is not None
        return self._reader.poll(self._pace.poll_limit, wait_s)

    def _learn(self, records: Sequence[Record]) -> None:
        started_s = time.monotonic()
        assert self._live is not None
        batch = read(records, self._store, self._registry.model, self._clock())
        if batch.dead_letters:
            self._log.append(batch.dead_letters)
        joined = join_all(batch, self._live.spec.actions, self._progress.last_number)
        positions = self._positions | {record.partition: record.cursor for record in records}
        self._take_in(batch, joined, cursor=json.dumps(positions))
        self._positions = positions
        assert self._reader is not None
        self._reader.commit(positions)
        for outcome, count in batch.outcomes.items():
            self._metrics.events.labels(outcome).inc(count)
        self._metrics.batch_seconds.observe(time.monotonic() - started_s)

    def _learn_silence(self) -> None:
        """Give decisions that nobody said anything about their reward, where silence has one."""
        reward = self._pace.silence_reward
        if reward is None:
            return
        before_s = self._clock() - self._pace.silence_after_s
        quiet = self._store.silent(self._progress.silence_place, before_s, self._pace.poll_limit)
        if not quiet:
            return
        histories = self._store.histories([decision.prediction_id for _, decision in quiet])
        number = self._progress.last_number
        changes = []
        for _, decision in quiet:
            if not histories[decision.prediction_id].feedback:
                number += 1
                changes.append(Change(None, Experience(number, decision, silence(decision, reward))))
        self._take_in(Read(), Joined(changes), silence_place=quiet[-1][0])

    def _take_in(
        self, batch: Read, joined: Joined, *, cursor: Cursor | None = None, silence_place: int | None = None
    ) -> None:
        """Learn from what is joined, and save everything that this changes at once."""
        assert self._live is not None
        assert self._reward is not None
        changes, users = self._cap_users(joined.changes)
        known, fresh = self._features_of(changes, batch.decisions)
        changes = self._with_probabilities(changes, known, batch.decisions)
        q_hat = self._predict(changes, known)
        running = self._compare(changes, known, q_hat)
        index = {action: i for i, action in enumerate(self._live.spec.actions)}
        forget = [(known[_id(c)], c.subtracts) for c in changes if c.subtracts is not None and _id(c) in known]
        learn = [(known[_id(c)], c.adds) for c in changes if c.adds is not None and _id(c) in known]
        space = self._reward.space
        reward = self._reward
        if forget:
            reward = reward.subtract(evidence_of(space, forget, index))
        if learn:
            reward = reward.add(evidence_of(space, learn, index))
        progress = self._advance(batch, joined, changes, users, silence_place)
        memory: dict[str, bytes | None] = {progresses.KEY: progress.to_bytes()}
        if reward is not self._reward:
            memory[REWARD_STATE] = reward.to_bytes()
        if running is not self._running:
            memory[runnings.KEY] = running.to_bytes()
        self._store.save(
            Changes(
                cursor=cursor,
                decisions=list(batch.decisions.values()),
                feedback=joined.feedback,
                experiences=[change.after for change in changes],
                features=fresh,
                memory=memory,
            )
        )
        self._reward, self._running, self._progress = reward, running, progress
        if progress.pending and self._pending_since_s is None:
            self._pending_since_s = time.monotonic()
        self._recent.extend(row for row, _ in learn)
        self._observe(changes, q_hat)

    def _cap_users(self, changes: Sequence[Change]) -> tuple[Sequence[Change], UserTally | None]:
        """Set aside new experiences of users who have had their share."""
        if self._pace.user_cap >= 1.0:
            return changes, None
        fresh = [change for change in changes if change.before is None]
        tally = UserTally(**self._progress.users) if self._progress.users else UserTally()
        admitted, tally = tally.admit([change.after.served.user_id for change in fresh], self._pace.user_cap)
        refused = {_id(change) for change, counts in zip(fresh, admitted, strict=True) if not counts}
        self._metrics.set_aside.labels("user_cap").inc(len(refused))
        return [
            replace(change, after=replace(change.after, set_aside=True)) if _id(change) in refused else change
            for change in changes
        ], tally

    def _features_of(
        self, changes: Sequence[Change], decisions: Mapping[str, Decision]
    ) -> tuple[dict[str, Features], dict[str, Features]]:
        """Features on the live trunk by prediction id, and which of them had to be made from content.

        An experience that was learned before must be forgotten at the features it was learned at; if it had none then,
        it gets none now.
        """
        assert self._live is not None
        digest = self._live.trunk_digest
        known: dict[str, Features] = {}
        for change in changes:
            logged = decisions[_id(change)].features if _id(change) in decisions else None
            if logged is not None and logged.trunk_digest == digest:
                known[_id(change)] = logged
        known |= self._store.features([_id(c) for c in changes if _id(c) not in known], digest)
        missing = [_id(c) for c in changes if _id(c) not in known and c.before is None]
        if not missing:
            return known, {}
        stored = self._store.contents([id_ for id_ in missing if id_ not in decisions])
        contents = [decisions[id_].content if id_ in decisions else stored[id_] for id_ in missing]
        made = self._versions.version(self._live.version).embed(contents)
        fresh = {id_: row for id_, row in zip(missing, made, strict=True) if row is not None}
        return known | fresh, fresh

    def _with_probabilities(
        self, changes: Sequence[Change], known: Mapping[str, Features], decisions: Mapping[str, Decision]
    ) -> Sequence[Change]:
        """Note with each new experience what the version that served it would have answered, while that is at hand."""
        by_version: dict[int, list[Served]] = {}
        for change in changes:
            if change.before is None:
                by_version.setdefault(change.after.served.version, []).append(change.after.served)
        noted: dict[str, tuple[float, ...]] = {}
        for number, group in by_version.items():
            try:
                version = self._versions.version(number)
            except UnknownVersion:
                continue  # pruned: feedback came very late
            logged = self._logged(group, version.manifest.trunk_digest, known, decisions)
            group = [served for served in group if served.prediction_id in logged]
            if group:
                rows = [logged[served.prediction_id] for served in group]
                probs = version.probabilities(rows, allowed_mask(version.manifest.spec, group))
                noted |= {served.prediction_id: tuple(row) for served, row in zip(group, probs.tolist(), strict=True)}
        return [
            replace(change, after=replace(change.after, probabilities=noted[_id(change)]))
            if _id(change) in noted
            else change
            for change in changes
        ]

    def _logged(
        self, group: Sequence[Served], digest: str, known: Mapping[str, Features], decisions: Mapping[str, Decision]
    ) -> Mapping[str, Features]:
        """Features on the trunk that served, by prediction id; it is the live one but around a change of trunk."""
        found: dict[str, Features] = {}
        for served in group:
            decision = decisions.get(served.prediction_id)
            row = known.get(served.prediction_id) if decision is None else decision.features
            if row is not None and row.trunk_digest == digest:
                found[served.prediction_id] = row
        missing = [served.prediction_id for served in group if served.prediction_id not in found]
        found |= self._store.features(missing, digest)
        return found

    def _predict(self, changes: Sequence[Change], known: Mapping[str, Features]) -> Mapping[int, Float64]:
        """Rewards predicted before they are learned, ``[a]`` by experience number, for what is new."""
        assert self._reward is not None
        fresh = [change for change in changes if change.before is None and _id(change) in known]
        if not fresh:
            return {}
        phi = features(self._reward.space, *stack([known[_id(change)] for change in fresh]))
        predicted, _ = posterior(self._reward, self._maker.settings.prior).predict(phi)
        return {change.after.number: row for change, row in zip(fresh, predicted, strict=True)}

    def _compare(
        self, changes: Sequence[Change], known: Mapping[str, Features], q_hat: Mapping[int, Float64]
    ) -> Running:
        rows = [
            Compared(change.after, known[_id(change)])
            for change in changes
            if change.before is None and _id(change) in known and not change.after.set_aside
        ]
        return runnings.update(self._running, rows, q_hat, self._registry, self._versions)

    def _advance(
        self,
        batch: Read,
        joined: Joined,
        changes: Sequence[Change],
        users: UserTally | None,
        silence_place: int | None,
    ) -> Progress:
        before = self._progress
        outcomes = dict(before.outcomes)
        for outcome, count in batch.outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
        arrived = list(batch.feedback.values())
        return replace(
            before,
            last_number=max([before.last_number, *(change.after.number for change in changes)]),
            experiences=before.experiences + sum((c.adds is not None) - (c.subtracts is not None) for c in changes),
            changes=before.changes + len(changes),
            feedback=before.feedback + len(arrived),
            last_feedback_id=arrived[-1].feedback_id if arrived else before.last_feedback_id,
            last_feedback_time_s=max([before.last_feedback_time_s, *(f.time_s for f in arrived)]),
            waiting=before.waiting + joined.waiting,
            discarded=before.discarded + joined.discarded,
            outcomes=outcomes,
            silence_place=before.silence_place if silence_place is None else silence_place,
            users=before.users if users is None else users.to_dict(),
        )

    # --- the running comparison --------------------------------------------------------------------------------------

    def _act_on_comparison(self) -> None:
        """Take the refreshes back on evidence of harm; make the latest the gated version on evidence of gain."""
        assert self._rollout is not None
        finding = self._running.comparison.finding()
        if finding == "none" or self._rollout.pinned:
            return
        reasons = "; ".join(self._running.comparison.report().reasons)
        if finding == "harm":
            self._revert(f"refreshes since version {self._running.gated} did harm: {reasons}")
        else:
            self._confirm(f"refreshes since version {self._running.gated} did better: {reasons}")

    def _revert(self, reason: str) -> None:
        """Serving first; then set aside what was learned since the gated version, or the next refresh does it again."""
        gated = self._running.gated
        change = RolloutChange(ACTOR, self._clock(), reason)
        moved = move(self._registry, lambda r: revert(r, change) if r.gated == gated != r.live else None)
        assert self._reward is not None
        assert self._live is not None
        learned_by_gated = int(self._registry.manifest(gated).data.get("last_experience", 0))
        harmful = [
            experience
            for experience in self._store.experiences(after=learned_by_gated)
            if experience.judgement is not None and not experience.set_aside
        ]
        found = self._store.features([e.served.prediction_id for e in harmful], self._reward.space.trunk_digest)
        judged = [
            (found[e.served.prediction_id], e.judgement)
            for e in harmful
            if e.judgement is not None and e.served.prediction_id in found
        ]
        index = {action: i for i, action in enumerate(self._live.spec.actions)}
        reward = self._reward
        if judged:
            reward = reward.subtract(evidence_of(reward.space, judged, index))
        progress = replace(
            self._progress,
            experiences=self._progress.experiences - len(harmful),
            refreshed=self._progress.changes,
        )
        running = Running(gated, max(self._registry.versions()), new_comparison(self._rules))
        self._store.save(
            Changes(
                set_aside_after=learned_by_gated,
                memory={
                    REWARD_STATE: reward.to_bytes(),
                    progresses.KEY: progress.to_bytes(),
                    runnings.KEY: running.to_bytes(),
                },
            )
        )
        self._reward, self._progress, self._running = reward, progress, running
        self._pending_since_s = None
        self._metrics.set_aside.labels("harm").inc(len(harmful))
        if moved is not None:
            self._metrics.reverts.inc()
        _log.warning("reverted", to_version=gated, set_aside=len(harmful), reason=reason)
        self._follow_rollout()

    def _confirm(self, reason: str) -> None:
        change = RolloutChange(ACTOR, self._clock(), reason)
        gated = self._running.gated
        live = self._live.version if self._live is not None else None
        moved = move(
            self._registry, lambda r: confirm(r, change) if r.gated == gated and r.live == live != gated else None
        )
        if moved is None or moved.gated is None:
            self._restart_comparison(gated, after_version=max(self._registry.versions()))
            return
        self._restart_comparison(moved.gated, after_version=moved.gated)
        self._metrics.confirms.inc()
        _log.info("confirmed", version=moved.gated, reason=reason)
        self._follow_rollout()

    def _restart_comparison(self, gated: int, *, after_version: int) -> None:
        running = Running(gated, after_version, new_comparison(self._rules))
        self._store.save(Changes(memory={runnings.KEY: running.to_bytes()}))
        self._running = running

    # --- head refresh ------------------------------------------------------------------------------------------------

    def _refresh_if_due(self, *, caught_up: bool) -> None:
        """A full batch is reason enough, unless more records wait: those come first, for ``max_wait_s`` at most."""
        assert self._rollout is not None
        pending = self._progress.pending
        if pending == 0 or self._rollout.pinned or self._live is None:
            return
        now_s = time.monotonic()
        self._pending_since_s = self._pending_since_s if self._pending_since_s is not None else now_s
        waited = now_s - self._pending_since_s >= self._pace.max_wait_s
        if not waited and not (caught_up and pending >= self._pace.batch):
            return
        self._refresh(self._live, pending, started_s=now_s)
        self._pending_since_s = None

    def _refresh(self, live: Manifest, pending: int, *, started_s: float) -> None:
        """Build, publish and serve a head from the latest evidence."""
        assert self._reward is not None
        recent = self._contexts(live)
        if not recent:
            return
        served = self._store.recall(served_key(live.version))
        base = empty_state(self._reward.space) if served is None else state_from_bytes(served)
        step = self._maker.step(base, self._reward, recent)
        progress = self._progress
        if step.share == 0.0:
            self._metrics.refreshes.labels("held back").inc()
            _log.warning("refresh held back: the smallest step would move the policy by more than policy.max_kl")
            return
        published = publish_refresh(
            self._registry,
            self._work_dir,
            self._maker,
            live,
            step.state,
            created_at_s=self._clock(),
            reason=f"{pending} new or changed experiences since version {live.version}",
            data={"positions": self._positions, **progress.data()},
            metrics={"kl_nats": step.kl, "share_of_step": step.share},
        )
        # A step cut short leaves evidence for the next refresh, as if one experience were still unlearned.
        refreshed = progress.changes if step.share >= 1.0 else progress.changes - 1
        self._progress = replace(progress, refreshed=refreshed)
        self._store.save(
            Changes(
                memory={
                    served_key(published.version): step.state.to_bytes(),
                    progresses.KEY: self._progress.to_bytes(),
                }
            )
        )
        change = RolloutChange(ACTOR, self._clock(), published.reason)
        version = published.version
        moved = move(
            self._registry, lambda r: refresh(r, version, change) if r.live == live.version and not r.pinned else None
        )
        self._metrics.refreshes.labels("live" if moved is not None else "overtaken").inc()
        self._metrics.refresh_kl.set(step.kl)
        self._metrics.refresh_seconds.observe(time.monotonic() - started_s)
        self._metrics.freshness_seconds.observe(max(0.0, self._clock() - progress.last_feedback_time_s))
        _log.info("refreshed", version=version, pending=pending, kl_nats=round(step.kl, 4), live=moved is not None)
        self._prune()
        self._follow_rollout()

    def _prune(self) -> None:
        removed = self._registry.prune(self._pace.versions_kept)
        if removed:
            self._store.save(Changes(memory={served_key(version): None for version in removed}))

    # --- what people see ---------------------------------------------------------------------------------------------

    def _observe(self, changes: Sequence[Change], q_hat: Mapping[int, Float64]) -> None:
        assert self._live is not None
        for change in changes:
            experience = change.after
            if change.before is None and experience.reward is not None and experience.number in q_hat:
                self._rewards.append(experience.reward)
                action = self._live.spec.action_index(experience.served.action)
                self._predicted.append(float(np.clip(q_hat[experience.number][action], 0.0, 1.0)))
        if self._rewards:
            self._metrics.satisfaction.set(float(np.mean(self._rewards)))
            self._metrics.predicted.set(float(np.mean(self._predicted)))
        progress = self._progress
        self._metrics.experiences.set(progress.experiences)
        self._metrics.waiting.set(progress.waiting)
        self._metrics.discarded.set(progress.discarded)
        if progress.feedback:
            self._metrics.joined_share.set(1.0 - progress.waiting / progress.feedback)
        report = self._running.comparison.report()
        self._metrics.e_value.labels("gain").set(report.e_value_gain)
        self._metrics.e_value.labels("harm").set(report.e_value_harm)
        self._metrics.comparison_n.set(report.n)
        now_s = time.monotonic()
        if now_s - self._lag_checked_s >= _STATUS_INTERVAL_S:
            assert self._reader is not None
            self._lag_checked_s = now_s
            self._metrics.lag.set(self._reader.lag())


def _id(change: Change) -> str:
    return change.after.served.prediction_id

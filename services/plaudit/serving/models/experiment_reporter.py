"""What this process sees of an experiment: how both arms answer, and what the candidate would answer in the shadow.

Counted while an experiment is under way and reported to the log about once a second, for the learner that evaluates it:
failures and late answers happen here, and each of several services sees its own part. In the shadow the candidate is
computed when the answer is there, on a thread of its own with the lowest priority, and not at all while requests wait:
it makes no answer fail and delays none. Knows nothing about what follows from the counts.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Final, NamedTuple

import numpy as np

from plaudit.core.errors import Expired, PlauditError
from plaudit.core.events import Answers, Content, ExperimentReport, Role, ShadowAnswer
from plaudit.core.ports.runtime import ServableModel
from plaudit.core.rollout import Rollout
from plaudit.serving.engine.call_context import ClientGone
from plaudit.serving.engine.decoding import decode_content
from plaudit.serving.engine.pipeline import Outcome, Predictions
from plaudit_models.bandit.policy import Float64, probabilities
from plaudit_models.evaluation.guards import BUCKETS, bucket
from plaudit_models.limits import Limits
from plaudit_models.preprocess import Batch

_QUEUE_LIMIT: Final = 16
"""Requests that may wait to be computed in the shadow; more are dropped, as their content would fill the memory."""
_SHADOWS_PER_REPORT: Final = 512
_FLOOR: Final = 1e-6
"""Probability that the shadow is taken to give an action that it does not have, so that the divergence stays finite."""
_NICENESS: Final = 19

NOT_COUNTED: Final[AbstractContextManager[None]] = contextlib.nullcontext()
"""Around a request of no experiment."""


@dataclass(slots=True)
class _Arm:
    failed: int = 0
    latencies: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    def answers(self) -> Answers:
        return Answers(self.failed, tuple(self.latencies))


class ShadowedRow(NamedTuple):
    """One row of a request, with the answer of the version that serves, for the shadow to be compared with."""

    content: Mapping[str, Content]
    predictions: Predictions
    outcome: Outcome


class ExperimentReporter:
    """Counts of one experiment in this process. Safe to use from several threads.

    Args:
        rollout: the one that names the candidate.
        candidate: None where it does not run here.
        problem: why it does not.
    """

    def __init__(self, rollout: Rollout, candidate: ServableModel | None, problem: str) -> None:
        self.rollout = rollout
        self.candidate = candidate
        self.problem = problem
        self._replica = secrets.token_hex(8)
        self._number = 0
        self._lock = threading.Lock()
        self._clear()

    @property
    def key(self) -> tuple[int, int | None]:
        """Experiments with equal keys are the same one."""
        return self.rollout.experiment, self.rollout.candidate

    def count_request(self, user_id: str, role: Role) -> AbstractContextManager[None]:
        """Around one request that is answered in ``role``: counts how. Requests without a user id are never part of an
        experiment.
        """
        if not user_id or self.candidate is None:
            return NOT_COUNTED
        return _CountedRequest(self, role is Role.CANDIDATE)

    def count(self, by_candidate: bool, duration_s: float | None) -> None:
        """Count an answer; a failure if ``duration_s`` is None."""
        with self._lock:
            arm = self._candidate_arm if by_candidate else self._live_arm
            if duration_s is None:
                arm.failed += 1
            else:
                arm.latencies[bucket(duration_s)] += 1

    def count_shadow(self, answer: ShadowAnswer | None) -> None:
        """Keep a shadow answer for the next report; None: it was dropped."""
        with self._lock:
            if answer is None or len(self._shadows) >= _SHADOWS_PER_REPORT:
                self._dropped += 1
            else:
                self._shadows.append(answer)

    def report(self, time_s: float) -> ExperimentReport | None:
        """Counts since the last report; None if there are none."""
        with self._lock:
            live, candidate = self._live_arm.answers(), self._candidate_arm.answers()
            nothing = not (live.answered or live.failed or candidate.answered or candidate.failed)
            problem_reported = self._number > 0 or not self.problem
            if nothing and problem_reported and not self._shadows and not self._dropped:
                return None
            self._number += 1
            report = ExperimentReport(
                replica=self._replica,
                number=self._number,
                model=self.rollout.model,
                experiment=self.rollout.experiment,
                version=self.rollout.candidate or 0,
                time_s=time_s,
                live=live,
                candidate=candidate,
                shadows=tuple(self._shadows),
                dropped=self._dropped,
                problem=self.problem,
            )
            self._clear()
        return report

    def _clear(self) -> None:
        self._live_arm = _Arm()
        self._candidate_arm = _Arm()
        self._shadows: list[ShadowAnswer] = []
        self._dropped = 0


class _CountedRequest:
    """Counts one request of an experiment."""

    __slots__ = ("_by_candidate", "_experiment", "_started_s")

    def __init__(self, experiment: ExperimentReporter, by_candidate: bool) -> None:
        self._experiment = experiment
        self._by_candidate = by_candidate

    def __enter__(self) -> None:
        self._started_s = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._experiment.count(self._by_candidate, time.perf_counter() - self._started_s)
        elif _is_failure(error):
            self._experiment.count(self._by_candidate, None)


def _is_failure(error: BaseException) -> bool:
    """True if the version is the cause, not the request, the client or a full queue. A late answer is a failure."""
    return isinstance(error, Expired) or not isinstance(error, PlauditError | ClientGone)


class ShadowEvaluator:
    """Computes candidates behind a share of the answers.

    Args:
        limits: of the content that is decoded.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queue: SimpleQueue[tuple[ExperimentReporter, ShadowedRow, Callable[[], int]] | None] = SimpleQueue()
        self._buffer: tuple[ServableModel, Batch] | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False

    def compare(self, experiment: ExperimentReporter, given: ShadowedRow, waiting: Callable[[], int]) -> None:
        """Compute the candidate's answer, for a share of the requests; returns at once.

        Args:
            waiting: number of requests that wait for the model.
        """
        if experiment.candidate is None or random.random() >= experiment.rollout.candidate_share:
            return
        if self._queue.qsize() >= _QUEUE_LIMIT:
            experiment.count_shadow(None)
            return
        self._queue.put((experiment, given, waiting))
        if self._thread is None:
            self._start()

    def close(self) -> None:
        """End the thread; what waits is dropped."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            self._closing = True
            self._queue.put(None)
            thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        if sys.platform == "linux":  # elsewhere it would be the whole process
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while (queued := self._queue.get()) is not None:
            experiment, given, waiting = queued
            if self._closing or waiting():
                experiment.count_shadow(None)
            else:
                experiment.count_shadow(self._compute(experiment, given))

    def _compute(self, experiment: ExperimentReporter, given: ShadowedRow) -> ShadowAnswer:
        candidate = experiment.candidate
        assert candidate is not None
        started_s, prediction_id = time.perf_counter(), given.outcome.prediction_id
        try:
            shadow_actions, shadow = self._policy(candidate, given)
        except Exception as error:  # whatever a version in an experiment does, it is only counted
            failure = f"{type(error).__name__}: {error}"[:300]
            return ShadowAnswer(prediction_id, "", False, 0.0, time.perf_counter() - started_s, failure)
        duration_s = time.perf_counter() - started_s
        policy, given_actions = given.outcome.evaluation.probabilities, given.predictions.actions.ids
        best = shadow_actions[int(shadow.argmax())]
        return ShadowAnswer(
            prediction_id=prediction_id,
            action=best,
            agrees=best == given_actions[int(policy.argmax())],
            kl_nats=kl_divergence(policy, _reordered(shadow, shadow_actions, given_actions)),
            duration_s=duration_s,
        )

    def _policy(self, candidate: ServableModel, given: ShadowedRow) -> tuple[Sequence[str], Float64]:
        """What the candidate picks from, and with which probabilities, ``[a]``."""
        manifest = candidate.manifest
        if self._buffer is None or self._buffer[0] is not candidate:
            self._buffer = candidate, Batch(manifest.spec, 1)
        inputs = self._buffer[1].fill([decode_content(given.content, candidate, self._limits)])
        actions = given.predictions.actions.on(candidate)
        embedding, base_logits, _ = candidate.trunk(inputs)
        _, scores = actions.score(candidate, embedding, base_logits)
        if not np.isfinite(scores).all():
            raise FloatingPointError(f"version {manifest.version} gave scores that are not finite")
        policy: Float64 = probabilities(scores, actions.allowed[None], manifest.floor)[0]
        return actions.ids, policy


def kl_divergence(given: Float64, shadow: Float64) -> float:
    """KL(given ‖ shadow) in nats, both ``[a]``; never below 0, whatever is rounded."""
    positive = given > 0.0
    return max(0.0, float(np.sum(given[positive] * np.log(given[positive] / np.maximum(shadow[positive], _FLOOR)))))


def _reordered(values: Float64, actions: Sequence[str], wanted: Sequence[str]) -> Float64:
    """``values`` in the order of ``wanted``; 0 for those that are not in ``actions``."""
    if actions == wanted:
        return values
    by_action = dict(zip(actions, values.tolist(), strict=True))
    return np.array([by_action.get(action, 0.0) for action in wanted])

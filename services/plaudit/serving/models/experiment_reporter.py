"""What this process sees of an experiment: how both arms answer, and what the candidate would answer in the shadow.

Counted while an experiment is under way and told to the log about once a second, for whoever judges experiments:
failures and late answers happen here, and with several services each sees its own part. In the shadow the candidate is
computed when the answer is there, on a thread of its own with the lowest priority, and not at all while requests wait:
it makes no answer fail and keeps none waiting. Knows nothing about what follows from the counts.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Final

import numpy as np

from plaudit.core.errors import Expired, PlauditError
from plaudit.core.events import Answers, Content, ExperimentReport, ShadowAnswer
from plaudit.core.ports.runtime import ServableModel
from plaudit.core.rollout import Rollout, in_experiment
from plaudit.serving.engine.batcher import ClientGone
from plaudit.serving.engine.decoding import Arrays
from plaudit_models.bandit.policy import Bool, Float64, probabilities
from plaudit_models.evaluation.guards import BUCKETS, bucket
from plaudit_models.preprocess import Batch

_QUEUE: Final = 16
"""Requests that may wait to be computed in the shadow; more are dropped, as their content would fill the memory."""
_SHADOWS_PER_REPORT: Final = 512
_FLOOR: Final = 1e-6
"""Probability that the shadow is taken to give an action that it does not have, so that the divergence stays finite."""
_NICENESS: Final = 19

UNWATCHED: Final[AbstractContextManager[None]] = contextlib.nullcontext()


@dataclass(slots=True)
class _Arm:
    failed: int = 0
    latencies: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    def answers(self) -> Answers:
        return Answers(self.failed, tuple(self.latencies))


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """An answer that was given, for the shadow to be compared with.

    Attributes:
        probabilities: ``[a]``, of the version that answered.
        allowed: ``[a]``, the actions it might pick.
    """

    prediction_id: str
    content: Mapping[str, Content]
    model: ServableModel
    probabilities: Float64
    allowed: Bool


class Experiment:
    """One experiment as it is seen here. Safe to use from several threads.

    Args:
        rollout: that asks for it.
        candidate: None where it does not run here.
        problem: why.
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
        """What makes it the same experiment."""
        return self.rollout.experiment, self.rollout.candidate

    def watch(self, user_id: str) -> AbstractContextManager[None]:
        """Around one request: counts how it was answered. Requests of nobody in particular are never in an
        experiment.
        """
        if not user_id or self.candidate is None:
            return UNWATCHED
        return _Watched(self, in_experiment(self.rollout, user_id))

    def count(self, by_candidate: bool, duration_s: float | None) -> None:
        """An answer; None: a failure."""
        with self._lock:
            arm = self._candidate if by_candidate else self._live
            if duration_s is None:
                arm.failed += 1
            else:
                arm.latencies[bucket(duration_s)] += 1

    def count_shadow(self, answer: ShadowAnswer | None) -> None:
        """None: it was dropped."""
        with self._lock:
            if answer is None or len(self._shadows) >= _SHADOWS_PER_REPORT:
                self._dropped += 1
            else:
                self._shadows.append(answer)

    def report(self, time_s: float) -> ExperimentReport | None:
        """What was seen since the last one; None if nothing was."""
        with self._lock:
            live, candidate = self._live.answers(), self._candidate.answers()
            nothing = not (live.answered or live.failed or candidate.answered or candidate.failed)
            told = self._number > 0 or not self.problem
            if nothing and told and not self._shadows and not self._dropped:
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
        self._live = _Arm()
        self._candidate = _Arm()
        self._shadows: list[ShadowAnswer] = []
        self._dropped = 0


class _Watched:
    """Counts one request of an experiment."""

    __slots__ = ("_began_s", "_by_candidate", "_experiment")

    def __init__(self, experiment: Experiment, by_candidate: bool) -> None:
        self._experiment = experiment
        self._by_candidate = by_candidate

    def __enter__(self) -> None:
        self._began_s = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._experiment.count(self._by_candidate, time.perf_counter() - self._began_s)
        elif _is_failure(error):
            self._experiment.count(self._by_candidate, None)


def _is_failure(error: BaseException) -> bool:
    """Whether the version is to blame, not the request, the caller or a full queue. Being late is."""
    return isinstance(error, Expired) or not isinstance(error, PlauditError | ClientGone)


class Shadow:
    """Computes candidates behind a share of the answers.

    Args:
        decode: content → graph inputs of a version, without the batch axis.
    """

    def __init__(self, decode: Callable[[Mapping[str, Content], ServableModel], Arrays]) -> None:
        self._decode = decode
        self._queue: SimpleQueue[tuple[Experiment, Shown, Callable[[], int]] | None] = SimpleQueue()
        self._buffer: tuple[ServableModel, Batch] | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def answered(self, experiment: Experiment, shown: Shown, waiting: Callable[[], int]) -> None:
        """An answer is on its way; returns at once.

        Args:
            waiting: how many requests wait for the model.
        """
        if experiment.candidate is None or random.random() >= experiment.rollout.candidate_share:
            return
        if self._queue.qsize() >= _QUEUE:
            experiment.count_shadow(None)
            return
        self._queue.put((experiment, shown, waiting))
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

    _closing = False

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        if sys.platform == "linux":  # elsewhere it would be the whole process
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while (given := self._queue.get()) is not None:
            experiment, shown, waiting = given
            if self._closing or waiting():
                experiment.count_shadow(None)
            else:
                experiment.count_shadow(self._compute(experiment, shown))

    def _compute(self, experiment: Experiment, shown: Shown) -> ShadowAnswer:
        candidate = experiment.candidate
        assert candidate is not None
        began_s = time.perf_counter()
        try:
            own = self._policy(candidate, shown)
        except Exception as error:  # whatever a version in an experiment does, it is only counted
            failure = f"{type(error).__name__}: {error}"[:300]
            return ShadowAnswer(shown.prediction_id, "", False, 0.0, time.perf_counter() - began_s, failure)
        duration_s = time.perf_counter() - began_s
        actions, its = shown.model.manifest.spec.actions, candidate.manifest.spec.actions
        best = its[int(own.argmax())]
        return ShadowAnswer(
            prediction_id=shown.prediction_id,
            action=best,
            agrees=best == actions[int(shown.probabilities.argmax())],
            kl_nats=divergence(shown.probabilities, _onto(own, its, actions)),
            duration_s=duration_s,
        )

    def _policy(self, candidate: ServableModel, shown: Shown) -> Float64:
        """``[a]`` of the candidate's actions."""
        manifest = candidate.manifest
        if self._buffer is None or self._buffer[0] is not candidate:
            self._buffer = candidate, Batch(manifest.spec, 1)
        inputs = self._buffer[1].fill([self._decode(shown.content, candidate)])
        embedding, base_logits, _ = candidate.trunk(inputs)
        scores = candidate.head(embedding, base_logits)
        if not np.isfinite(scores).all():
            raise FloatingPointError(f"version {manifest.version} gave scores that are not finite")
        theirs = shown.model.manifest.spec.actions
        may = {action for action, allowed in zip(theirs, shown.allowed.tolist(), strict=True) if allowed}
        allowed = np.array([[action in may for action in manifest.spec.actions]])
        if not allowed.any():
            raise ValueError("it has none of the actions that were allowed")
        own: Float64 = probabilities(scores, allowed, manifest.floor)[0]
        return own


def divergence(shown: Float64, shadow: Float64) -> float:
    """KL(shown ‖ shadow) in nats, both ``[a]``; never below 0, whatever is rounded."""
    given = shown > 0.0
    return max(0.0, float(np.sum(shown[given] * np.log(shown[given] / np.maximum(shadow[given], _FLOOR)))))


def _onto(values: Float64, actions: tuple[str, ...], wanted: tuple[str, ...]) -> Float64:
    """The same in the order of ``wanted``; 0 for those that are not in ``actions``."""
    if actions == wanted:
        return values
    place = {action: value for action, value in zip(actions, values.tolist(), strict=True)}
    return np.array([place.get(action, 0.0) for action in wanted])

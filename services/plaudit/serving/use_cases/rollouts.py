"""The use case of versions: list them, and change which one serves. Knows no transport.

A change is a compare-and-set on the registry. The version it makes live is loaded and proven here first, so a version
that fails its proof is refused before any server is told to serve it, and once the call returns this server serves it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import structlog

from plaudit.core.errors import (
    IncompatibleContract,
    InvalidInput,
    PlauditError,
    RegistryUnavailable,
    RolloutMoved,
    UnknownVersion,
    UnprovenVersion,
)
from plaudit.core.ports.store import StatusReaders
from plaudit.core.rollout import Change, Rollout, end_canary, fresh_salt, pin, promote, rollback, start_canary, unpin
from plaudit.core.rollout_updates import MAX_ATTEMPTS, update_rollout
from plaudit.core.text.identifiers import check_actor, check_reason
from plaudit.serving.engine.call_context import NO_DEADLINE, CallContext
from plaudit.serving.engine.decision_log import DecisionLog
from plaudit.serving.engine.shutdown import ShutdownSignal
from plaudit.serving.models.live_model import LiveModel
from plaudit.serving.models.served_models import ServedModels
from plaudit_models.bundle import CorruptBundle, Manifest

logger = structlog.get_logger(__name__)


class RolloutService:
    """Args:
    decision_log: logs changes of the rollout.
    watch_interval_s: how often watchers poll for a change.
    statuses: what the learners say of experiments; None: nothing is known of them.
    """

    def __init__(
        self,
        models: ServedModels,
        decision_log: DecisionLog,
        *,
        watch_interval_s: float,
        statuses: StatusReaders | None,
    ) -> None:
        self._models = models
        self._decision_log = decision_log
        self._watch_interval_s = watch_interval_s
        self._statuses = statuses

    def all(self, model: str) -> tuple[Sequence[Manifest], Rollout]:
        """Every version whose manifest can be read, oldest first, and the present rollout. Raises UnknownModel."""
        live = self._models.pick(model).live
        manifests = []
        for version in live.registry.versions():
            with suppress(UnknownVersion, CorruptBundle):  # pruned or changed since it was listed
                manifests.append(live.registry.manifest(version))
        return manifests, live.registry.rollout()

    def one(self, model: str, version: int) -> Manifest:
        """Raises UnknownModel, UnknownVersion, UnprovenVersion (its manifest is damaged)."""
        return _one(self._models.pick(model).live, version)

    def experiment(self, model: str, version: int) -> Mapping[str, Any] | None:
        """State or result of the latest experiment of a version; None if nothing is known. Raises UnknownModel."""
        name = self._models.pick(model).live.name
        try:
            reader = None if self._statuses is None else self._statuses(name)
            summary = None if reader is None else reader.experiment_summary(version)
            return None if summary is None else summary.details
        except PlauditError as error:  # whatever is wrong with the store, what the manifest says can be shown
            logger.warning("experiment_unknown", model=name, version=version, problem=str(error))
            return None

    def start_canary(
        self, model: str, version: int, share: float, shadow: bool, expected: int, actor: str, reason: str
    ) -> Rollout:
        """Start an experiment with ``version`` beside the live one.

        Args:
            share: of the users that it serves, in (0, 1); in the shadow, of the requests, in (0, 1].
            shadow: its answers are computed and logged, not given.
            expected: as for :meth:`promote`.

        Raises:
            ExperimentActive, VersionAlreadyLive, IncompatibleContract: nothing changed.
            Exception: what :meth:`promote` raises.
        """
        _check_number(version)
        if not (0.0 < share < 1.0 or (shadow and share == 1.0)):
            raise InvalidInput("share", f"{share:g} is not in (0, {'1]' if shadow else '1)'}")
        where = f"behind {share:.0%} of the requests" if shadow else f"with {share:.0%} of the users"
        salt = fresh_salt()
        reason = reason or f"version {version} is tried out {where}"
        return self._change(
            model,
            expected,
            actor,
            reason,
            lambda now, how: start_canary(now, version, share, how, shadow=shadow, salt=salt),
        )

    def stop_canary(self, model: str, version: int, expected: int, actor: str, reason: str) -> Rollout:
        """End an experiment; the live version serves all users again.

        Args:
            version: the candidate that is meant; 0: whichever is in an experiment.

        Raises:
            NoActiveExperiment: it is not in an experiment; nothing changed.
            Exception: what :meth:`promote` raises.
        """
        if version < 0:
            raise InvalidInput("version", f"{version} is not a version; 0 means whichever is in an experiment")
        return self._change(
            model,
            expected,
            actor,
            reason or "the experiment was stopped",
            lambda now, how: end_canary(now, how, version=version),
        )

    def promote(self, model: str, version: int, expected: int, actor: str, reason: str) -> Rollout:
        """Make ``version`` live.

        Args:
            expected: the generation this was decided on; 0: any.

        Raises:
            InvalidInput, UnknownModel, UnknownVersion, UnprovenVersion, IncompatibleContract, VersionPinned,
                RolloutMoved: nothing changed.
        """
        _check_number(version)
        reason = reason or f"version {version} was promoted"
        return self._change(model, expected, actor, reason, lambda now, how: promote(now, version, how))

    def rollback(self, model: str, expected: int, actor: str, reason: str) -> Rollout:
        """Make the previous version live. Raises as :meth:`promote` does, and NoPreviousVersion."""
        return self._change(model, expected, actor, reason or "rolled back", rollback)

    def pin(self, model: str, version: int, expected: int, actor: str, reason: str) -> Rollout:
        """Make ``version`` live and keep it; 0 unpins. Raises as :meth:`promote` does."""
        if version < 0:
            raise InvalidInput("version", f"{version} is not a version; versions count from 1, and 0 unpins")
        if version == 0:
            return self._change(model, expected, actor, reason or "unpinned", unpin)
        reason = reason or f"version {version} was pinned"
        return self._change(model, expected, actor, reason, lambda now, how: pin(now, version, how))

    def watch(self, model: str, shutdown: ShutdownSignal, call: CallContext = NO_DEADLINE) -> Iterator[Rollout]:
        """The present rollout at once, then every change, until the server ends or the client leaves.

        Raises:
            UnknownModel: no model of that name is served.
        """
        live = self._models.pick(model).live
        seen = live.registry.rollout()
        yield seen
        while not shutdown.is_set() and call.is_active():
            if live.rollout.generation > seen.generation:
                for rollout in live.registry.ledger(after=seen.generation):
                    seen = rollout
                    yield rollout
            shutdown.wait(self._watch_interval_s)

    def _change(
        self, model: str, expected: int, actor: str, reason: str, transition: Callable[[Rollout, Change], Rollout]
    ) -> Rollout:
        check_actor(actor)
        check_reason(reason)
        live = self._models.pick(model).live
        change = Change(actor=actor or "operator", time_s=time.time(), reason=reason)
        rollout = _apply(live, expected, change, transition)
        self._decision_log.record(rollout)
        logger.info("rollout_changed", **{name: value for name, value in asdict(rollout).items() if name != "salt"})
        return rollout


def _check_number(version: int) -> None:
    if version < 1:
        raise InvalidInput("version", f"{version} is not a version; versions count from 1")


def _check_contract(live: LiveModel, before: Rollout, after: Rollout) -> None:
    """Raises IncompatibleContract: a version that would serve takes other inputs than the live one, so clients would
    fail.
    """
    if before.live is None:
        return
    present = live.current
    ours = _one(live, before.live) if present is None else present.manifest
    for version in {after.live, after.candidate} - {before.live, before.previous, before.gated, None}:
        assert version is not None
        difference = ours.spec.difference(_one(live, version).spec)
        if difference:
            raise IncompatibleContract(version, before.live, difference)


def _one(live: LiveModel, version: int) -> Manifest:
    try:
        return live.registry.manifest(version)
    except CorruptBundle as error:
        raise UnprovenVersion(version, str(error)) from error


def _apply(live: LiveModel, expected: int, change: Change, transition: Callable[[Rollout, Change], Rollout]) -> Rollout:
    """Compare-and-set; where any generation will do, a change that another one overtook is made again on the new one.

    The versions that the new rollout names are loaded and proven before it is written.
    """

    def checked(present: Rollout) -> Rollout:
        if present.generation < live.rollout.generation:
            raise RegistryUnavailable(
                f"it is at generation {present.generation} and was at {live.rollout.generation}; put it back as it was"
            )
        if expected not in (0, present.generation):
            raise RolloutMoved(expected, present.generation)
        rollout = transition(present, change)
        _check_contract(live, present, rollout)
        for version in (rollout.live, rollout.candidate):
            if version is not None and version not in (present.live, present.candidate):
                live.prepare(version)
        return rollout

    rollout = update_rollout(live.registry, checked, max_attempts=1 if expected else MAX_ATTEMPTS)
    assert rollout is not None  # every transition of an operator changes the rollout
    live.sync()
    return rollout

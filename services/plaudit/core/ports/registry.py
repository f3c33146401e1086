"""Ports of the model registry, by capability: immutable versions, and the rollout that says which of them serves.

All are safe to use from several threads and processes. Where the storage is gone, methods raise RegistryUnavailable.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from plaudit.core.rollout import Rollout
from plaudit_models.bundle import Manifest


class VersionReader(Protocol):
    """The versions of one model."""

    @property
    def model(self) -> str:
        """Name of the model."""
        ...

    def versions(self) -> Sequence[int]:
        """Numbers of all versions, oldest first."""
        ...

    def manifest(self, version: int) -> Manifest:
        """Raises UnknownVersion."""
        ...

    def folder(self, version: int) -> Path:
        """Local folder with the version's files, to be read only. Raises UnknownVersion."""
        ...


class VersionPublisher(Protocol):
    """Adds and removes versions of one model."""

    def publish(self, folder: Path) -> Manifest:
        """Add a sealed version folder under the next version number; readers see all of it or nothing.

        The folder is moved or copied; the manifest returned carries the number.

        Raises:
            CorruptBundle: the folder does not match its manifest.
        """
        ...

    def prune(self, keep: int) -> Sequence[int]:
        """Remove unused head refreshes but the ``keep`` newest; returns the versions removed.

        Unused is what the rollout does not name. The newest version stays, so that no number is given twice, and so do
        versions of other kinds.
        """
        ...


class RolloutStore(Protocol):
    """The rollout of one model, and its ledger."""

    def rollout(self) -> Rollout:
        """The present rollout; generation 0 with nothing live if there is none yet."""
        ...

    def set_rollout(self, rollout: Rollout) -> None:
        """Compare-and-set: ``rollout.generation`` must be the present one plus one. Appended to the ledger.

        Raises:
            RolloutMoved: another process changed it meanwhile.
            UnknownVersion: it names a version that does not exist.
        """
        ...

    def ledger(self) -> Sequence[Rollout]:
        """All rollouts that there ever were, oldest first."""
        ...


class ModelRegistry(VersionReader, VersionPublisher, RolloutStore, Protocol):
    """All capabilities for one model."""


class ModelCatalog(Protocol):
    """The models that have a registry. Safe to use from several threads."""

    def models(self) -> Sequence[str]:
        """Names of the models, as of now."""
        ...

    def registry(self, model: str) -> ModelRegistry: ...

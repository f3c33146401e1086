"""Ports of the model registry, by capability: immutable versions, and the rollout that says which of them serves.

All are safe to use from several threads and processes. Where the storage is gone, methods raise RegistryUnavailable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from plaudit.core.rollout import Rollout
from plaudit_models.bundle import Manifest


@dataclass(frozen=True, slots=True)
class IgnoredEntry:
    """Something in the registry that is no model and no version.

    Attributes:
        name: place in the registry, such as ``lost+found`` or ``zoo/versions/000007``.
        problem: reason why it is not used.
    """

    name: str
    problem: str


class VersionReader(Protocol):
    """The versions of one model."""

    @property
    def model(self) -> str:
        """Name of the model."""
        ...

    def versions(self) -> Sequence[int]:
        """Numbers of all versions with a manifest that is theirs, oldest first; whatever else is there is ignored."""
        ...

    def manifest(self, version: int) -> Manifest:
        """Raises UnknownVersion, CorruptBundle (it is damaged, or another version's)."""
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
        """Remove unused head refreshes but the ``keep`` newest, and fine-tuned versions alike; returns what is removed.

        Unused is what the rollout does not name. The newest version stays, so that no number is given twice, and so do
        pre-trained and imported versions.
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
            UnknownVersion: it names a version that does not exist and that the one before did not name.
        """
        ...

    def ledger(self, after: int = 0) -> Iterator[Rollout]:
        """Rollouts of a generation above ``after``, oldest first; read as they are asked for."""
        ...

    def first_live(self, version: int) -> Rollout | None:
        """The first rollout that made ``version`` or a later one live, found without reading all of the ledger."""
        ...


class ModelRegistry(VersionReader, VersionPublisher, RolloutStore, Protocol):
    """All capabilities for one model."""


class ModelCatalog(Protocol):
    """The models that have a registry. Safe to use from several threads."""

    def models(self) -> Sequence[str]:
        """Names of the models, as of now."""
        ...

    def ignored(self) -> Sequence[IgnoredEntry]:
        """Entries that are no model and no version, by name, the first MAX_IGNORED_ENTRIES of them."""
        ...

    def registry(self, model: str) -> ModelRegistry: ...

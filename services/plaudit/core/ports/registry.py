"""Port of the model registry: immutable versions and the rollout that says which of them serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from plaudit.core.rollout import Rollout
from plaudit_models.bundle import Manifest


class ModelRegistry(Protocol):
    """Immutable versions of one model and the rollout that says which of them serves.

    Safe to use from several threads and processes. Where the storage is gone, what lists and changes raises
    RegistryUnavailable.
    """

    @property
    def model(self) -> str: ...

    def publish(self, folder: Path) -> Manifest:
        """Take a sealed version folder in under the next version number; what others see is all of it or nothing.

        The folder is moved or copied; the manifest returned carries the number.

        Raises:
            CorruptBundle: the folder does not match its manifest.
        """
        ...

    def versions(self) -> Sequence[int]:
        """Every version, oldest first."""
        ...

    def manifest(self, version: int) -> Manifest:
        """Raises UnknownVersion."""
        ...

    def folder(self, version: int) -> Path:
        """A local folder with the version's files, to be read only. Raises UnknownVersion."""
        ...

    def rollout(self) -> Rollout:
        """The present rollout; generation 0 with nothing live if there is none yet."""
        ...

    def set_rollout(self, rollout: Rollout) -> None:
        """Compare-and-set: ``rollout.generation`` must be the present one plus one. Appended to the ledger.

        Raises:
            RolloutMoved: somebody else changed it meanwhile.
            UnknownVersion: it names a version that does not exist.
        """
        ...

    def ledger(self) -> Sequence[Rollout]:
        """Every rollout there ever was, oldest first."""
        ...

    def prune(self, keep: int) -> Sequence[int]:
        """Remove dead head refreshes but the ``keep`` newest; returns the versions removed.

        Dead is what the rollout does not name. The newest version stays, so that no number is given twice, and so do
        versions of other kinds.
        """
        ...


class ModelCatalog(Protocol):
    """The models there are. Safe to use from several threads."""

    def models(self) -> Sequence[str]:
        """Their names, as of now."""
        ...

    def registry(self, model: str) -> ModelRegistry: ...

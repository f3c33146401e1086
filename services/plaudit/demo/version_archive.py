"""Archive of every version that the learner publishes, for the report: the registry keeps only the latest refreshes.

A version in it is a folder of hard links, so it takes space only for files that the registry has removed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from plaudit.core.errors import UnknownVersion
from plaudit.core.ports.registry import VersionReader
from plaudit.learner.features.head_builder import share
from plaudit_models.bundle import Manifest


class VersionArchive:
    """Archive of the versions of one registry.

    Args:
        registry: registry of the versions to archive.
        root: folder with a folder for each version; made.
    """

    def __init__(self, registry: VersionReader, root: Path) -> None:
        self._registry = registry
        self._root = root
        self._root.mkdir(parents=True, exist_ok=True)
        self._manifests: dict[int, Manifest] = {}

    def sync(self) -> None:
        """Archive the versions published since the last call."""
        for version in self._registry.versions():
            if version not in self._manifests:
                try:
                    self._add(version)
                except (UnknownVersion, FileNotFoundError):
                    continue  # the registry removed it meanwhile

    @property
    def manifests(self) -> dict[int, Manifest]:
        """Manifests by version, in the order of publication."""
        return dict(self._manifests)

    def folder(self, version: int) -> Path:
        """Folder of a version. Raises KeyError if it is not in the archive."""
        return self._root / f"{self._manifests[version].version:06}"

    def remove(self) -> None:
        """Delete the archive."""
        shutil.rmtree(self._root)
        self._manifests.clear()

    def _add(self, version: int) -> None:
        manifest = self._registry.manifest(version)
        source, target = self._registry.folder(version), self._root / f"{version:06}"
        partial = self._root / f".{version:06}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for file in source.iterdir():
            share(file, partial / file.name)
        partial.rename(target)
        self._manifests[version] = manifest

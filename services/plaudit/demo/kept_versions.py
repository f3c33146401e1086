"""Every version that the learner publishes, kept for the report: the registry itself keeps the latest refreshes only.

A version kept is a folder of hard links, so it takes room only for what the registry has removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from plaudit.core.errors import UnknownVersion
from plaudit.core.ports.registry import VersionReader
from plaudit.learner.features.head_builder import share
from plaudit_models.bundle import Manifest


class KeptVersions:
    """Args:
    registry: whose versions.
    home: gets a folder for each of them; made.
    """

    def __init__(self, registry: VersionReader, home: Path) -> None:
        self._registry = registry
        self._home = home
        self._home.mkdir(parents=True, exist_ok=True)
        self._manifests: dict[int, Manifest] = {}

    def look(self) -> None:
        """Keep what was published since the last look."""
        for version in self._registry.versions():
            if version not in self._manifests:
                try:
                    self._keep(version)
                except (UnknownVersion, FileNotFoundError):
                    continue  # removed by the registry while we looked

    @property
    def manifests(self) -> dict[int, Manifest]:
        """By version, in the order in which they were published."""
        return dict(self._manifests)

    def versions(self) -> Sequence[int]:
        return list(self._manifests)

    def folder(self, version: int) -> Path:
        """Raises KeyError if it was not kept."""
        return self._home / f"{self._manifests[version].version:06}"

    def remove(self) -> None:
        """Give the room back."""
        shutil.rmtree(self._home)
        self._manifests.clear()

    def _keep(self, version: int) -> None:
        manifest = self._registry.manifest(version)
        source, target = self._registry.folder(version), self._home / f"{version:06}"
        partial = self._home / f".{version:06}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for file in source.iterdir():
            share(file, partial / file.name)
        partial.rename(target)
        self._manifests[version] = manifest

"""Files of a version as its manifest seals them, each read once: the bytes that are digested are those that are used.

A file that is checked and then opened again by its name could be another one by then.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from plaudit_models.bundle import CorruptBundle, FileDigest, check_digest, digest_bytes, read_bytes, read_manifest


class SealedFiles:
    """The files of one folder.

    Raises:
        CorruptBundle: it has no readable manifest.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._checked: set[str] = set()
        self.manifest = read_manifest(folder)

    def read(self, name: str) -> bytes:
        """Contents of the file of this (present) name. Raises CorruptBundle if they are not the sealed ones."""
        stored = self.manifest.stored_name(name)
        expected = self.manifest.files[stored]
        data = read_bytes(self._folder / stored, expected.size_bytes)
        check_digest(stored, digest_bytes(data), expected)
        self._checked.add(stored)
        return data

    def check_others(self, digest: Callable[[Path], FileDigest]) -> None:
        """Check the files that were not read. Raises CorruptBundle."""
        for name, expected in self.manifest.files.items():
            if name not in self._checked:
                try:
                    found = digest(self._folder / name)
                except OSError as error:
                    raise CorruptBundle(f"{name}: {error.strerror}") from error
                check_digest(name, found, expected)

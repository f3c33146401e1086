"""ModelRegistry in one folder: versions as immutable folders, the rollout as one atomically replaced file.

    ROOT/MODEL/versions/000001/…   a version's files; equal files of different versions are one file with several names
    ROOT/MODEL/rollout.json        the present rollout
    ROOT/MODEL/ledger.jsonl        all rollouts, oldest first, one a line
    ROOT/MODEL/*.lock              held while publishing, and while changing the rollout

A folder that is not yet, or no longer, a version has a name that begins with a dot; a crash leaves at most that behind,
and the next publish removes it. Knows nothing about graphs or about serving.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Final

from plaudit.core.errors import InvalidInput, RegistryUnavailable, RolloutMoved, UnknownVersion
from plaudit.core.rollout import Rollout, rollout_from_dict
from plaudit_models.bundle import CARD, MANIFEST, CorruptBundle, FileDigest, Manifest, digest_file, read_manifest

_CHUNK_BYTES: Final = 1 << 20
_PUBLISH: Final = "publish.lock"
_ROLLOUT: Final = "rollout.lock"


class DirectoryRegistry:
    """See :class:`plaudit.core.ports.registry.ModelRegistry`.

    Args:
        root: the folder of all models; made if it is not there.
        model: name of the model.
    """

    def __init__(self, root: Path, model: str) -> None:
        self._model = model
        self._home = root / model
        self._versions = self._home / "versions"
        self._versions.mkdir(parents=True, exist_ok=True)
        self._rollout_file = self._home / "rollout.json"
        self._ledger_file = self._home / "ledger.jsonl"
        self._manifests: dict[int, Manifest] = {}

    @property
    def model(self) -> str:
        return self._model

    def publish(self, folder: Path) -> Manifest:
        """See the port. ``folder`` is copied, and is the caller's to delete.

        Files whose content another version has are not stored again. A file that *is* another version's (a hard link
        to it) is not read again either: it was checked when that version was published, and is read-only since.
        """
        manifest = read_manifest(folder)
        if manifest.spec.name != self._model:
            raise InvalidInput("model", f"{folder} holds a version of {manifest.spec.name!r}, not of {self._model!r}")
        with self._locked(_PUBLISH):
            self._clear_leftovers()
            known = self.versions()
            manifest = replace(manifest, version=known[-1] + 1 if known else 1)
            staging = self._versions / f".incoming-{secrets.token_hex(8)}"
            staging.mkdir()
            try:
                for name, expected in manifest.files.items():
                    self._store_file(folder, name, expected, staging / name)
                if (folder / CARD).exists():
                    _write_durably(staging / CARD, (folder / CARD).read_bytes())
                _write_durably(staging / MANIFEST, manifest.to_json().encode())
                _sync_folder(staging)
                staging.rename(self._path(manifest.version))
                _sync_folder(self._versions)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
        return manifest

    def versions(self) -> Sequence[int]:
        try:
            return sorted(int(entry.name) for entry in os.scandir(self._versions) if entry.name.isdecimal())
        except FileNotFoundError as error:
            raise RegistryUnavailable(f"there is no folder {self._versions}; put it back") from error

    def manifest(self, version: int) -> Manifest:
        folder = self.folder(version)
        if version not in self._manifests:
            self._manifests[version] = read_manifest(folder)
        return self._manifests[version]

    def folder(self, version: int) -> Path:
        path = self._path(version)
        if not path.is_dir():
            raise UnknownVersion(version, list(self.versions()))
        return path

    def rollout(self) -> Rollout:
        try:
            text = self._rollout_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return Rollout(self._model)
        return rollout_from_dict(json.loads(text))

    def set_rollout(self, rollout: Rollout) -> None:
        if rollout.model != self._model:
            raise InvalidInput("model", f"is {rollout.model!r}; this is the registry of {self._model!r}")
        with self._locked(_ROLLOUT):
            present = self.rollout()
            if rollout.generation != present.generation + 1:
                raise RolloutMoved(expected=rollout.generation - 1, found=present.generation)
            for version in _named(rollout):
                self.folder(version)
            line = json.dumps(asdict(rollout))
            # The ledger first: a line without effect is recognised by its generation, see ledger().
            self._append_to_ledger(line)
            fresh = self._home / ".rollout.json"
            _write_durably(fresh, (line + "\n").encode())
            fresh.replace(self._rollout_file)
            _sync_folder(self._home)

    def ledger(self) -> Sequence[Rollout]:
        present = self.rollout().generation
        try:
            lines = self._ledger_file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        by_generation: dict[int, Rollout] = {}
        for line in lines:
            try:
                rollout = rollout_from_dict(json.loads(line))
            except ValueError:
                continue  # cut short by a crash, so it never took effect
            if rollout.generation <= present:
                by_generation[rollout.generation] = rollout
        return list(by_generation.values())

    def prune(self, keep: int) -> Sequence[int]:
        with self._locked(_PUBLISH), self._locked(_ROLLOUT):
            in_use = set(_named(self.rollout())) | set(self.versions()[-1:])
            unused = [v for v in self.versions() if v not in in_use and self.manifest(v).kind == "head"]
            removed = unused[: max(0, len(unused) - keep)]
            for version in removed:
                self._path(version).rename(self._versions / f".removed-{secrets.token_hex(8)}")
                self._manifests.pop(version, None)
            self._clear_leftovers()
        return removed

    def _path(self, version: int) -> Path:
        return self._versions / f"{version:06}"

    def _store_file(self, folder: Path, name: str, expected: FileDigest, target: Path) -> None:
        """Put the file at ``target``, sharing it with another version that has it, or copied.

        Raises:
            CorruptBundle: its content is not the one that the manifest names.
        """
        if Path(name).name != name:
            raise CorruptBundle(f"{name!r} in {folder}: a version's files have plain names")
        source, stored = folder / name, self._stored(expected)
        try:
            if stored is None:
                found = _copy_durably(source, target)
            elif source.samefile(stored):
                found = expected
            else:
                found = digest_file(source)
        except FileNotFoundError as error:
            raise CorruptBundle(f"{name} in {folder}: {error}") from error
        if found != expected:
            raise CorruptBundle(
                f"{name} in {folder}: sha256 {found.sha256[:16]}… ({found.size_bytes} bytes) is not the sealed "
                f"{expected.sha256[:16]}… ({expected.size_bytes} bytes)"
            )
        if stored is not None:
            target.hardlink_to(stored)

    def _stored(self, wanted: FileDigest) -> Path | None:
        """A file of a published version with this content; the newest, as parents mostly are."""
        for version in reversed(self.versions()):
            for name, digest in self.manifest(version).files.items():
                if digest == wanted:
                    return self._path(version) / name
        return None

    def _append_to_ledger(self, line: str) -> None:
        with self._ledger_file.open("ab+") as file:
            size = file.tell()
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")  # after a line that a crash cut short
            file.write(line.encode() + b"\n")
            _sync(file)

    def _clear_leftovers(self) -> None:
        """Remove what processes that died have left; only under the publish lock, which they held."""
        for entry in os.scandir(self._versions):
            if entry.name.startswith("."):
                shutil.rmtree(entry.path)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Excludes other threads and processes; the lock of a process that dies is released."""
        try:
            file = (self._home / name).open("ab")
        except FileNotFoundError as error:
            raise RegistryUnavailable(f"there is no folder {self._home}; put it back") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _named(rollout: Rollout) -> list[int]:
    named = (rollout.live, rollout.previous, rollout.gated, rollout.candidate)
    return [version for version in named if version is not None]


def _copy_durably(source: Path, target: Path) -> FileDigest:
    """Copy, and digest what was copied, in one reading. The copy is read-only."""
    sha256, size_bytes = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            sha256.update(chunk)
            size_bytes += writer.write(chunk)
        _sync(writer)
    target.chmod(0o444)
    return FileDigest(sha256.hexdigest(), size_bytes)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        _sync(file)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DirectoryCatalog:
    """See :class:`plaudit.core.ports.registry.ModelCatalog`: every folder of ``root`` is a model.

    Args:
        root: the folder of all models; need not be there yet.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def models(self) -> Sequence[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self._root) if entry.is_dir())
        except FileNotFoundError:
            return []

    def registry(self, model: str) -> DirectoryRegistry:
        return DirectoryRegistry(self._root, model)

"""ModelRegistry in one folder: versions as immutable folders, the rollout as one atomically replaced file.

    ROOT/MODEL/versions/000001/…   a version's files; equal files of different versions are one file with several names
    ROOT/MODEL/rollout.json        the present rollout
    ROOT/MODEL/ledger.jsonl        all rollouts, oldest first, one a line
    ROOT/MODEL/ledger.index        marks in the ledger, see ledger.py
    ROOT/MODEL/*.lock              held while publishing, and while changing the rollout

A folder that is not yet, or no longer, a version has a name that begins with a dot; a crash leaves at most that behind,
and the next publish removes it. Whatever else stands there (a file system's own folders, copies, half a version) is
ignored, and told by :meth:`DirectoryCatalog.ignored`. Knows nothing about graphs or about serving.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from plaudit.adapters.registry.files import (
    copy_durably,
    flush_folder,
    link,
    locked,
    unavailable,
    write_durably,
)
from plaudit.adapters.registry.ledger import Ledger
from plaudit.core.errors import InvalidInput, RegistryUnavailable, RolloutMoved, UnknownVersion
from plaudit.core.limits import MAX_CACHED_MANIFESTS, MAX_IGNORED_ENTRIES, MAX_ROLLOUT_BYTES
from plaudit.core.ports.registry import IgnoredEntry
from plaudit.core.rollout import Rollout, rollout_from_dict
from plaudit_models.bundle import (
    CARD,
    MANIFEST,
    CorruptBundle,
    FileDigest,
    Manifest,
    check_digest,
    digest_file,
    open_regular,
    read_bytes,
    read_manifest,
)
from plaudit_models.spec import NAME, InvalidSpec, check_model_name

_PUBLISH: Final = "publish.lock"
_ROLLOUT: Final = "rollout.json"
_VERSIONS: Final = "versions"
_OWN: Final = frozenset({_PUBLISH, _ROLLOUT, f".{_ROLLOUT}", _VERSIONS, "rollout.lock", "ledger.jsonl", "ledger.index"})
_OWN_LEFTOVER: Final = re.compile(r"\.(?:incoming|removed)-[0-9a-f]{16}|\.ledger\.index-[0-9a-f]{16}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{6}|[1-9][0-9]{6,11}", re.ASCII)
"""Names of version folders: six digits, and more where a number has them."""
_PRUNED_KINDS: Final = ("head", "finetuned")
"""Kinds of versions that the learner makes again and again."""


@dataclass(frozen=True, slots=True)
class _ReadManifest:
    """A manifest as it was read; ``stamp``: inode, size and time of its file then."""

    stamp: tuple[int, int, int]
    manifest: Manifest


class DirectoryRegistry:
    """See :class:`plaudit.core.ports.registry.ModelRegistry`.

    Args:
        root: the folder of all models; made when the first version is published.
        model: name of the model.

    Raises:
        InvalidInput: the name is not that of a model; nothing was looked at.
    """

    def __init__(self, root: Path, model: str) -> None:
        try:
            check_model_name(model)
        except InvalidSpec as error:
            raise InvalidInput("model", str(error).removeprefix("model.name: ")) from error
        self._model = model
        self._home = root / model
        self._versions = self._home / _VERSIONS
        self._ledger = Ledger(self._home)
        self._manifests: OrderedDict[int, _ReadManifest] = OrderedDict()
        self._was_there = False

    @property
    def model(self) -> str:
        return self._model

    def publish(self, folder: Path) -> Manifest:
        """See the port. ``folder`` is copied, and is the caller's to delete.

        Files whose content another version has are not stored again. A file that *is* another version's (a hard link
        to it) is not read again either: it was checked when that version was published, and is read-only since.
        """
        manifest = read_manifest(folder, follow_links=False)
        if manifest.spec.name != self._model:
            raise InvalidInput("model", f"{folder} holds a version of {manifest.spec.name!r}, not of {self._model!r}")
        card = read_bytes(folder / CARD, follow_links=False) if os.path.lexists(folder / CARD) else None
        with self._locked(_PUBLISH), unavailable("a version cannot be published", self._versions):
            self._clear_leftovers()
            manifest = replace(manifest, version=self._next_number())
            staging = self._versions / f".incoming-{secrets.token_hex(8)}"
            staging.mkdir()
            try:
                for name, expected in manifest.files.items():
                    self._store_file(folder / name, expected, staging / name)
                if card is not None:
                    write_durably(staging / CARD, card)
                write_durably(staging / MANIFEST, manifest.to_json().encode())
                flush_folder(staging)
                staging.rename(self._path(manifest.version))
                flush_folder(self._versions)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
        return manifest

    def versions(self) -> Sequence[int]:
        numbers = [number for name in self._names() if (number := _number(name)) is not None]
        for gone in self._manifests.keys() - numbers:
            self._manifests.pop(gone, None)
        return sorted(number for number in numbers if self._problem(number) is None)

    def manifest(self, version: int) -> Manifest:
        return self._manifest(version, self.folder(version))

    def folder(self, version: int) -> Path:
        path = self._path(version)
        if not os.path.isdir(path):
            raise UnknownVersion(version, list(self.versions()))
        return path

    def rollout(self) -> Rollout:
        return _read_rollout(self._home / _ROLLOUT, self._model)

    def set_rollout(self, rollout: Rollout) -> None:
        if rollout.model != self._model:
            raise InvalidInput("model", f"is {rollout.model!r}; this is the registry of {self._model!r}")
        with self._locked("rollout.lock"), unavailable("the rollout cannot be changed", self._home):
            present = self.rollout()
            if rollout.generation != present.generation + 1:
                raise RolloutMoved(expected=rollout.generation - 1, found=present.generation)
            for version in _named(rollout) - _named(present):
                self.folder(version)
            fresh = self._home / f".{_ROLLOUT}"
            write_durably(fresh, json.dumps(asdict(rollout)).encode() + b"\n")
            # Before it takes effect: a line of the ledger without effect is recognised, see ledger.py.
            self._ledger.append(rollout)
            fresh.replace(self._home / _ROLLOUT)
            flush_folder(self._home)

    def ledger(self, after: int = 0) -> Iterator[Rollout]:
        with unavailable("the ledger cannot be read", self._home):
            yield from self._ledger.after(after, up_to=self.rollout().generation)

    def first_live(self, version: int) -> Rollout | None:
        with unavailable("the ledger cannot be read", self._home):
            return self._ledger.first_live(version, up_to=self.rollout().generation)

    def prune(self, keep: int) -> Sequence[int]:
        with (
            self._locked(_PUBLISH),
            self._locked("rollout.lock"),
            unavailable("versions cannot be removed", self._versions),
        ):
            versions = self.versions()
            in_use = _named(self.rollout()) | set(versions[-1:])
            removed = []
            for kind in _PRUNED_KINDS:
                unused = [v for v in versions if v not in in_use and self.manifest(v).kind == kind]
                removed += unused[: max(0, len(unused) - keep)]
            for version in sorted(removed):
                self._path(version).rename(self._versions / f".removed-{secrets.token_hex(8)}")
            self._clear_leftovers()
        return sorted(removed)

    def ignored(self) -> Iterator[IgnoredEntry]:
        """Entries of the model's folder that are no version and not the registry's own."""
        try:
            beside = sorted(name for name in os.listdir(self._home) if name not in _OWN)
            found = self._names()
        except (OSError, RegistryUnavailable) as error:
            yield IgnoredEntry(self._model, str(error))
            return
        for name in beside:
            if not _OWN_LEFTOVER.fullmatch(name):
                yield IgnoredEntry(f"{self._model}/{name}", "stands beside the versions and is no part of the registry")
        for name in sorted(found):
            number = _number(name)
            if number is None:
                problem: str | None = "its name is no number of a version"
            else:
                problem = self._problem(number)
            if problem is not None and not _OWN_LEFTOVER.fullmatch(name):
                yield IgnoredEntry(f"{self._model}/{_VERSIONS}/{name}", problem)

    def _manifest(self, version: int, folder: Path) -> Manifest:
        """Read again only if its file is another one. Raises CorruptBundle."""
        try:
            status = (folder / MANIFEST).stat()
        except OSError as error:
            raise CorruptBundle(f"{MANIFEST}: {error.strerror}") from error
        stamp = status.st_ino, status.st_size, status.st_mtime_ns
        known = self._manifests.get(version)
        if known is None or known.stamp != stamp:
            manifest = read_manifest(folder)
            if (manifest.spec.name, manifest.version) != (self._model, version):
                raise CorruptBundle(f"{MANIFEST}: is that of version {manifest.version} of {manifest.spec.name!r}")
            known = self._manifests[version] = _ReadManifest(stamp, manifest)
            while len(self._manifests) > MAX_CACHED_MANIFESTS:
                self._manifests.popitem(last=False)
        return known.manifest

    def _path(self, version: int) -> Path:
        return self._versions / f"{version:06}"

    def _names(self) -> list[str]:
        """Names of what stands among the versions."""
        try:
            names = os.listdir(self._versions)
        except FileNotFoundError as error:
            if self._was_there:
                raise RegistryUnavailable(
                    f"the versions of {self._model!r} are gone; put them back", str(self._versions)
                ) from error
            return []
        except OSError as error:
            raise RegistryUnavailable(
                f"the versions of {self._model!r} cannot be listed ({error.strerror})", str(self._versions)
            ) from error
        self._was_there = True
        return names

    def _problem(self, number: int) -> str | None:
        """Reason why an entry with the name of a version is none; None if it is one."""
        path = self._path(number)
        if not os.path.isdir(path):
            return "is no folder"
        try:
            self._manifest(number, path)
        except CorruptBundle as error:
            return str(error)
        return None

    def _next_number(self) -> int:
        """A number that no version has or had, as far as that is known."""
        number = max([*self.versions(), *_named(self.rollout())], default=0) + 1
        while os.path.lexists(self._path(number)):
            number += 1
        return number

    def _store_file(self, source: Path, expected: FileDigest, target: Path) -> None:
        """Put the file at ``target``, sharing it with another version that has it, or copied.

        Raises:
            CorruptBundle: its content is not the one that the manifest names, or it is a link.
        """
        stored = self._stored(expected)
        if stored is not None:
            found = expected if _is_same(source, stored) else _digest(source)
            check_digest(source.name, found, expected)
            if link(stored, target):
                return
        try:
            with open_regular(source, follow_links=False):
                pass  # what is wrong with the source is not the registry's fault
        except OSError as error:
            raise CorruptBundle(f"{source.name}: {error.strerror}") from error
        check_digest(source.name, copy_durably(source, target), expected)

    def _stored(self, wanted: FileDigest) -> Path | None:
        """A file of a published version with this content; the newest, as parents mostly are."""
        for version in reversed(self.versions()):
            for name, digest in self.manifest(version).files.items():
                if digest == wanted:
                    return self._path(version) / name
        return None

    def _clear_leftovers(self) -> None:
        """Remove what processes that died have left; only under the publish lock, which they held.

        What cannot be removed yet (NFS keeps the files that a process has open) is tried again the next time.
        """
        for name in self._names():
            if _OWN_LEFTOVER.fullmatch(name):
                shutil.rmtree(self._versions / name, ignore_errors=True)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Excludes other threads and processes."""
        if self._was_there and not os.path.isdir(self._versions):
            raise RegistryUnavailable(f"the folder of {self._model!r} is gone; put it back", str(self._home))
        with unavailable("it cannot be written to", self._home):
            self._versions.mkdir(parents=True, exist_ok=True)
            with locked(self._home / name):
                yield


def _number(name: str) -> int | None:
    """Number of the version that a folder of this name is; None if it is none's."""
    return int(name) or None if _NUMBER.fullmatch(name) else None


def _named(rollout: Rollout) -> set[int]:
    named = (rollout.live, rollout.previous, rollout.gated, rollout.candidate)
    return {version for version in named if version is not None}


def _is_same(source: Path, stored: Path) -> bool:
    """Whether both are names of one file. Raises CorruptBundle."""
    try:
        return os.path.samestat(source.lstat(), stored.stat())
    except OSError as error:
        raise CorruptBundle(f"{source.name}: {error.strerror}") from error


def _digest(source: Path) -> FileDigest:
    try:
        return digest_file(source, follow_links=False)
    except OSError as error:
        raise CorruptBundle(f"{source.name}: {error.strerror}") from error


def _read_rollout(path: Path, model: str) -> Rollout:
    """Raises RegistryUnavailable if it cannot be read, or is another model's."""
    try:
        with open_regular(path) as file:
            text = file.read(MAX_ROLLOUT_BYTES)
        rollout = rollout_from_dict(json.loads(text))
    except FileNotFoundError:
        return Rollout(model)
    except OSError as error:
        raise RegistryUnavailable(f"{path.name} of {model!r}: {error.strerror}", str(path)) from error
    except (ValueError, RecursionError) as error:
        raise RegistryUnavailable(
            f"{path.name} of {model!r} is damaged ({str(error)[:200]}); "
            "the last line of ledger.jsonl is the present one",
            str(path),
        ) from error
    if rollout.model != model:
        raise RegistryUnavailable(f"{path.name} is that of the model {rollout.model!r}, not of {model!r}", str(path))
    return rollout


class DirectoryCatalog:
    """See :class:`plaudit.core.ports.registry.ModelCatalog`: every folder of ``root`` with versions is a model.

    Args:
        root: the folder of all models; need not be there yet.
        described: names of models that are there even before they have a version.
    """

    def __init__(self, root: Path, described: Sequence[str] = ()) -> None:
        self._root = root
        self._described = described

    def models(self) -> Sequence[str]:
        return sorted({*self._described, *(name for name in self._names() if self._problem(name) is None)})

    def ignored(self) -> Sequence[IgnoredEntry]:
        found: list[IgnoredEntry] = []
        for name in sorted(self._names()):
            problem = self._problem(name)
            if problem is not None:
                found.append(IgnoredEntry(name, problem))
            else:
                found += self.registry(name).ignored()
            if len(found) >= MAX_IGNORED_ENTRIES:
                break
        return found[:MAX_IGNORED_ENTRIES]

    def registry(self, model: str) -> DirectoryRegistry:
        return DirectoryRegistry(self._root, model)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._root)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RegistryUnavailable(f"its models cannot be listed ({error.strerror})", str(self._root)) from error

    def _problem(self, name: str) -> str | None:
        """Reason why an entry is no model; None if it is one."""
        if not NAME.fullmatch(name):
            return f"its name is not that of a model, which matches {NAME.pattern}"
        home = self._root / name
        try:
            with os.scandir(home / _VERSIONS):
                pass
            _read_rollout(home / _ROLLOUT, name)
        except FileNotFoundError:
            return f"has no folder {_VERSIONS}"
        except NotADirectoryError:
            return "is no folder with versions"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        except RegistryUnavailable as error:
            return error.for_clients
        return None

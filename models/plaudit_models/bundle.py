"""Version on disk: an immutable folder of graphs, weights, golden pairs and a manifest that seals them.

Knows the folder format and nothing about where folders are kept (the registry) or how graphs are run (serving).

    trunk.onnx                content → embedding, base_logits
    head.onnx                 embedding, base_logits → scores
    text_scorer.onnx          texts of dynamic actions → vectors (only of models that score text)
    dynamic_head.safetensors  what was learned about dynamic actions (only where something was)
    weights.safetensors       the torch weights the trunk was exported from (absent for imported models)
    tokenizer.json            for text modalities
    trunk_golden.safetensors  recorded trunk inputs and the outputs they must give
    head_golden.safetensors   the scores the head must give for the trunk's golden outputs
    text_scorer_golden.safetensors
                              recorded texts and the vectors that they must give
    dynamic_head_golden.safetensors
                              the scores that the dynamic head must give the recorded texts in the recorded contexts
    manifest.json             digests of all of the above, and where the version came from
    card.md                   the same for people
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from plaudit_models.spec import ModelSpec, spec_from_dict

FORMAT: Final = 1
TRUNK: Final = "trunk.onnx"
HEAD: Final = "head.onnx"
TEXT_SCORER: Final = "text_scorer.onnx"
WEIGHTS: Final = "weights.safetensors"
TOKENIZER: Final = "tokenizer.json"
DYNAMIC_HEAD: Final = "dynamic_head.safetensors"
TRUNK_GOLDEN: Final = "trunk_golden.safetensors"
HEAD_GOLDEN: Final = "head_golden.safetensors"
TEXT_SCORER_GOLDEN: Final = "text_scorer_golden.safetensors"
DYNAMIC_HEAD_GOLDEN: Final = "dynamic_head_golden.safetensors"
"""Not in versions of 0.1.0 and before."""
MANIFEST: Final = "manifest.json"
CARD: Final = "card.md"
TRUNK_FILES: Final = (TRUNK, WEIGHTS, TOKENIZER, TRUNK_GOLDEN, TEXT_SCORER, TEXT_SCORER_GOLDEN)
"""Files that versions which differ in the head alone share."""

FORMER_NAMES: Final[Mapping[str, str]] = {
    TEXT_SCORER: "candidate.onnx",
    TEXT_SCORER_GOLDEN: "candidate_golden.safetensors",
    DYNAMIC_HEAD: "candidate_head.safetensors",
}
"""Names of files in versions from before 0.1.0. Such folders are sealed, so the names stay as they are."""

VersionKind = Literal["pretrained", "head", "finetuned", "imported"]

MAX_MANIFEST_BYTES: Final = 16 * 2**20
"""Largest manifest or card that is read."""
MAX_FILES: Final = 64
"""Most files that one version may seal."""
_CHUNK_BYTES: Final = 2**20
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class CorruptBundle(Exception):
    """Contradiction between a version folder and its manifest; the message names the file and what is wrong with it.

    It does not say where the folder is: clients are sent it too.
    """


@dataclass(frozen=True, slots=True)
class FileDigest:
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Contents and origin of a version.

    Attributes:
        version: number that the registry gave it; 0 until published.
        parent: version that it was made from, if any.
        kind: how it was made.
        created_at_s: UTC seconds since the epoch.
        spec: the model's contract.
        floor: probability mass spread evenly over the allowed actions (the logged exploration floor ε).
        files: digest and size of every sealed file, by name.
        reason: why this version was made, in one sentence.
        data: events that it has learned from (cursor range, counts).
        metrics: measurements of it.
        gate: evidence of the offline gate; empty if it passed none.
    """

    spec: ModelSpec
    kind: VersionKind
    created_at_s: float
    files: Mapping[str, FileDigest]
    version: int = 0
    parent: int | None = None
    floor: float = 0.0
    reason: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trunk_digest(self) -> str:
        """Digest that identifies the feature space: features carry it, and only those of one digest may be mixed."""
        return self.files[TRUNK].sha256

    def stored_name(self, name: str) -> str:
        """Name of a file in this version's own folder: ``name``, or the former one where the version is that old."""
        former = FORMER_NAMES.get(name, name)
        return former if former in self.files else name

    def has(self, name: str) -> bool:
        """Whether the version has the file of this (present) name."""
        return self.stored_name(name) in self.files

    def sha256(self, name: str) -> str:
        """Digest of the file of this (present) name. Raises KeyError if the version has none."""
        return self.files[self.stored_name(name)].sha256

    @property
    def trainable(self) -> bool:
        """True if a fine-tuning job can start from this version.

        A graph that was imported has no weights that torch could load; it is told by its native outputs, which versions
        that refresh its head have too.
        """
        return not self.spec.outputs

    @property
    def digest(self) -> str:
        """Digest of what is served: all files, the spec and the floor, but not the number that the registry gave it."""
        sealed = {
            "files": {name: f.sha256 for name, f in self.files.items()},
            "spec": self.spec.to_dict(),
            "floor": self.floor,
        }
        return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        raw = {
            "format": FORMAT,
            "digest": self.digest,
            **{name: getattr(self, name) for name in _PLAIN},
            "spec": self.spec.to_dict(),
            "files": {name: asdict(f) for name, f in sorted(self.files.items())},
        }
        return json.dumps(raw, indent=2) + "\n"


_PLAIN: Final = ("version", "parent", "kind", "created_at_s", "reason", "floor", "data", "metrics", "gate")
"""Fields that JSON holds as they are."""


def manifest_from_json(text: str) -> Manifest:
    """Raises CorruptBundle if the text is no manifest of :data:`FORMAT`, or its digest does not match."""
    try:
        raw = json.loads(text)
        if raw["format"] != FORMAT:
            raise CorruptBundle(f"{MANIFEST}: format {raw['format']!r} is not {FORMAT}, the one this release reads")
        manifest = Manifest(
            spec=spec_from_dict(raw["spec"]),
            files={name: FileDigest(**f) for name, f in raw["files"].items()},
            **{name: raw[name] for name in _PLAIN},
        )
        _check_files(manifest.files)
        if not isinstance(manifest.version, int) or manifest.version < 0:
            raise CorruptBundle(f"{MANIFEST}: version {manifest.version!r} is no number of a version")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CorruptBundle(f"{MANIFEST}: {type(error).__name__}: {error}") from error
    if manifest.digest != raw.get("digest"):
        raise CorruptBundle(f"{MANIFEST}: digest {raw.get('digest')!r} does not match its contents ({manifest.digest})")
    return manifest


def _check_files(files: Mapping[str, FileDigest]) -> None:
    """Raises CorruptBundle: a name leads out of the folder, or what is said of a file is no digest."""
    if len(files) > MAX_FILES:
        raise CorruptBundle(f"{MANIFEST}: {len(files)} files; a version has at most {MAX_FILES}")
    for name, digest in files.items():
        if not _FILE_NAME.fullmatch(name):
            raise CorruptBundle(f"{MANIFEST}: {name[:80]!r}: a version's files have plain names")
        if not isinstance(digest.size_bytes, int) or not _SHA256.fullmatch(digest.sha256):
            raise CorruptBundle(f"{MANIFEST}: {name}: size and sha256 are no digest of a file")


def read_manifest(folder: Path, *, follow_links: bool = True) -> Manifest:
    """Raises CorruptBundle if the folder has no readable manifest."""
    try:
        text = read_bytes(folder / MANIFEST, follow_links=follow_links).decode()
    except UnicodeDecodeError as error:
        raise CorruptBundle(f"{MANIFEST}: {error}") from error
    return manifest_from_json(text)


def open_regular(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file to read it; never waits, whatever stands in its place (a pipe, a device).

    Args:
        follow_links: False: a link is refused, wherever it leads.

    Raises:
        OSError: it is not there, or no regular file; ``strerror`` says so without the path.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_links:
            error.strerror = "is a link; a version has its files itself"
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return open(descriptor, "rb")


def read_bytes(path: Path, max_bytes: int = MAX_MANIFEST_BYTES, *, follow_links: bool = True) -> bytes:
    """Contents of a regular file of a version. Raises CorruptBundle if it cannot be read or is larger."""
    try:
        with open_regular(path, follow_links=follow_links) as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise CorruptBundle(f"{path.name}: {error.strerror}") from error
    if len(data) > max_bytes:
        raise CorruptBundle(f"{path.name}: has more than {max_bytes} bytes")
    return data


def digest_file(path: Path, *, follow_links: bool = True) -> FileDigest:
    """Digest of what is read, and its size. Raises OSError."""
    with open_regular(path, follow_links=follow_links) as file:
        sha256, size_bytes = hashlib.sha256(), 0
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            size_bytes += len(chunk)
        return FileDigest(sha256.hexdigest(), size_bytes)


def digest_bytes(data: bytes) -> FileDigest:
    return FileDigest(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Digest every file in ``folder`` but manifest and card, write the manifest, and return it.

    Raises:
        CorruptBundle: a file is a link: what it leads to may be another one tomorrow, or a secret.
    """
    links = sorted(entry.name for entry in os.scandir(folder) if entry.is_symlink())
    if links:
        raise CorruptBundle(f"{links[0]}: is a link; a version has its files itself")
    # What begins with a dot is the file system's or the desktop's own, such as .DS_Store.
    found = [p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    names = sorted(name for name in found if name not in (MANIFEST, CARD))
    sealed = replace(manifest, files={name: digest_file(folder / name, follow_links=False) for name in names})
    _check_files(sealed.files)
    (folder / MANIFEST).write_text(sealed.to_json(), encoding="utf-8")
    return sealed


def verify(folder: Path, digest: Callable[[Path], FileDigest] = digest_file) -> Manifest:
    """Read the manifest and check every sealed file against it.

    Args:
        digest: how a file is digested; for callers that remember files they have read before.

    Raises:
        CorruptBundle: a file is missing or differs from its digest by so much as one byte.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        try:
            found = digest(folder / name)
        except OSError as error:
            raise CorruptBundle(f"{name}: {error.strerror}") from error
        check_digest(name, found, expected)
    return manifest


def check_digest(name: str, found: FileDigest, expected: FileDigest) -> None:
    """Raises CorruptBundle if a file is not the one that was sealed."""
    if found != expected:
        raise CorruptBundle(
            f"{name}: sha256 {found.sha256[:16]}… ({found.size_bytes} bytes) is not the sealed "
            f"{expected.sha256[:16]}… ({expected.size_bytes} bytes)"
        )

"""``plaudit import``: from an ONNX file, which a process of its own reads and runs, to a version in the registry."""

from __future__ import annotations

import codecs
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from plaudit.cli.commands import import_job
from plaudit.cli.failures import CommandFailed
from plaudit.compose.paths import data_dir
from plaudit.compose.registry import model_registry
from plaudit.compose.runtime import model_runtime
from plaudit.compose.settings import environment_without_settings
from plaudit.core.errors import InvalidInput
from plaudit.core.rollout import Change, promote
from plaudit.core.settings import Settings
from plaudit.core.text.identifiers import check_id
from plaudit_models.bundle import CorruptBundle, Manifest
from plaudit_models.preprocess import input_dtype
from plaudit_models.spec import MAX_FREE_LENGTH, InvalidSpec, ModelSpec, check_model_name

_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Encodings that editors and shells on Windows write, by what the file begins with."""
_SHOWN: Final = 5
_READ_BYTES_PER_S: Final = 10_000_000
"""Slowest disk and machine that an import allows for: a file is read, written, and read again when it is proven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """An import as it was asked for; see :class:`plaudit.adapters.runtime.importer.ImportOptions`.

    Attributes:
        golden: npz of recorded inputs.
        memory_bytes: the most that the graph may use while it is imported, beside the file.
        time_s: the longest that the import may take, beside reading and writing the file.
    """

    file: Path
    name: str
    logits: str = ""
    embedding: str = ""
    probabilities: bool = False
    actions: Sequence[str] = ()
    golden: Path | None = None
    max_length: int = MAX_FREE_LENGTH
    memory_bytes: int = 2 * 2**30
    time_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Imported:
    """A published version.

    Attributes:
        live: it serves from now on.
        notes: what was assumed or left out, a sentence each.
    """

    manifest: Manifest
    live: bool
    notes: Sequence[str]


def read_actions(file: Path | None) -> list[str]:
    """Actions from a file with one a line; [] without a file. Raises CommandFailed."""
    if file is None:
        return []
    try:
        data = file.read_bytes()
        encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
        lines = data.decode(encoding).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"actions: {file}: {error}") from error
    actions: dict[str, int] = {}
    twice = []
    for number, line in enumerate(lines, start=1):
        action = line.strip().strip("\ufeff")
        if action in actions:
            twice.append(f"{action[:80]!r} (lines {actions[action]} and {number})")
        elif action:
            try:
                actions[check_id(f"actions: {file}: line {number}", action)] = number
            except InvalidInput as error:  # no request and no feedback could name it
                raise CommandFailed(str(error)) from error
    if twice:
        more = f" and {len(twice) - _SHOWN} more" if len(twice) > _SHOWN else ""
        raise CommandFailed(f"actions: {file}: names are there twice: {', '.join(twice[:_SHOWN])}{more}")
    return list(actions)


def import_model(settings: Settings, request: ImportRequest, *, go_live: bool) -> Imported:
    """Publish the file as the next version of the model.

    Args:
        go_live: make it live even if another version is; the first version of a model always goes live.

    Raises:
        CommandFailed: with a sentence for the user; nothing was published.
    """
    try:
        check_model_name(request.name)  # before it becomes part of a path
    except InvalidSpec as error:
        raise CommandFailed(str(error)) from error
    with tempfile.TemporaryDirectory(dir=data_dir(settings)) as made:
        folder = Path(made)
        notes = _run(settings, request, folder)
        try:
            model = model_runtime(settings).load(folder)  # where it will run, which may be a GPU
        except CorruptBundle as error:
            raise CommandFailed(str(error)) from error
        _check_size(model.manifest.spec, settings.serving.max_message_bytes)
        registry = model_registry(settings, request.name)
        rollout = registry.rollout()
        live = go_live or rollout.live is None
        if live and rollout.live is not None:
            _check_clients(registry.manifest(rollout.live).spec, model.manifest.spec, rollout.live)
        manifest = registry.publish(folder)
    if live:
        reason = f"{request.file.name} was imported"
        registry.set_rollout(promote(rollout, manifest.version, Change("plaudit import", time.time(), reason)))
    return Imported(manifest, live, notes)


def _check_size(spec: ModelSpec, max_message_bytes: int) -> None:
    """Raises CommandFailed: a request is larger than a message may be, so none would ever be answered."""
    request_bytes = sum(
        math.prod(max(length, 1) for length in modality.shape) * input_dtype(modality).itemsize
        for modality in spec.modalities.values()
    )
    if request_bytes > max_message_bytes:
        raise CommandFailed(
            f"one row of inputs is {request_bytes} bytes, and serving.max_message_bytes is {max_message_bytes}; set it "
            "to more"
        )


def _check_clients(live: ModelSpec, spec: ModelSpec, version: int) -> None:
    """Raises CommandFailed: clients of the live version could not be answered."""
    difference = live.difference(spec)
    if difference:
        raise CommandFailed(
            f"it is incompatible with clients of version {version}, which is live: {difference}; import it under "
            "another name"
        )


def _run(settings: Settings, request: ImportRequest, folder: Path) -> Sequence[str]:
    """Make the version in a process of its own; returns its notes. Raises CommandFailed."""
    job = import_job.ImportJob(
        file=str(request.file.absolute()),
        name=request.name,
        folder=str(folder),
        golden="" if request.golden is None else str(request.golden.absolute()),
        options={
            "logits": request.logits,
            "embedding": request.embedding,
            "probabilities": request.probabilities,
            "actions": list(request.actions),
            "floor": settings.policy.floor,
            "max_length": request.max_length,
        },
        max_batch=settings.serving.max_batch,
        memory_bytes=request.memory_bytes,
    )
    time_s = request.time_s + import_job.size_bytes(request.file) / _READ_BYTES_PER_S
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", import_job.__name__],  # without the present folder in front of the modules
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            check=False,
            timeout=time_s,
            env=environment_without_settings(),
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(
            f"{request.file}: did not finish within {time_s:.0f} s; if the graph needs that long, allow it with "
            "--time-limit"
        ) from error
    answer = _answer(done.stdout)
    if done.returncode != 0 or answer is None:
        raise CommandFailed(f"{request.file}: {_how_it_ended(done)}")
    if "problem" in answer:
        raise CommandFailed(answer["problem"])
    notes: Sequence[str] = answer["notes"]
    return notes


def _answer(printed: str) -> dict[str, Any] | None:
    try:
        answer = json.loads(printed.strip().rpartition("\n")[2])
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _how_it_ended(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        ended_by = signal.Signals(-done.returncode).name
        return (
            f"running the graph ended the process that imports it ({ended_by}); it may need more memory than "
            "--memory-limit allows, or be made to do harm"
        )
    last = done.stderr.strip().rpartition("\n")[2]
    return f"the process that imports it failed ({last[:300] or 'it said nothing'})"

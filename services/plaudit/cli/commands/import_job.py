"""Import of one ONNX file in a process of its own, with bounds on memory: a graph may ask for any amount.

Told on standard input what to do, and answers on standard output: ``{"notes": […]}`` or ``{"problem": "…"}``. Its
parent bounds the time and tells what killed it.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file

from plaudit.adapters.runtime.graph_file import CannotImport
from plaudit.adapters.runtime.importer import ImportOptions, import_onnx
from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.core.text.reasons import told_reason
from plaudit.serving.models.rehearsal import RehearsalFailed, rehearse
from plaudit_models.bundle import TRUNK_GOLDEN, CorruptBundle
from plaudit_models.limits import DEFAULT_LIMITS

_COPIES: Final = 6
"""Copies of a file's bytes that an import holds at once, at most: read, changed, written, loaded, optimised, packed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportJob:
    """What to do.

    Attributes:
        file: the ONNX file.
        name: of the model.
        folder: empty; gets the version.
        golden: npz of recorded inputs; "": none.
        options: the other fields of :class:`ImportOptions`.
        max_batch: the most rows of one batch.
        memory_bytes: the most that the graph may use beside the file.
    """

    file: str
    name: str
    folder: str
    golden: str
    options: Mapping[str, Any]
    max_batch: int
    memory_bytes: int


def main() -> None:
    job = ImportJob(**json.loads(sys.stdin.read()))
    notes: list[str] = []
    try:
        _bound_memory(job.memory_bytes + _COPIES * size_bytes(Path(job.file)))
        _run(job, notes)
        answer: dict[str, object] = {"notes": notes}
    except (CannotImport, CorruptBundle, RehearsalFailed) as error:
        answer = {"problem": _with_way_out(str(error))}
    except MemoryError:
        answer = {"problem": _with_way_out("Failed to allocate memory")}
    print(json.dumps(answer))


def _run(job: ImportJob, notes: list[str]) -> None:
    folder = Path(job.folder)
    options = ImportOptions(golden=_golden(job.golden), **job.options)
    import_onnx(Path(job.file), job.name, folder, options, notes.append)
    rehearse(OnnxRuntime("cpu").load(folder), load_file(folder / TRUNK_GOLDEN), DEFAULT_LIMITS, job.max_batch)


def _golden(file: str) -> dict[str, np.ndarray] | None:
    if not file:
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if not hasattr(arrays, "files"):
                raise ValueError("it is one array; save arrays by the names of the inputs: np.savez(FILE, name=array)")
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # of numpy, zipfile and zlib
        raise CannotImport(f"golden: {file}: {error}") from error


def size_bytes(file: Path) -> int:
    """Size of the file and of what lies beside it under a name that begins with its own."""
    try:
        return sum(each.stat().st_size for each in file.parent.iterdir() if each.name.startswith(file.stem))
    except OSError:
        return 0


def _bound_memory(more_bytes: int) -> None:
    """Let the process take that much address space beyond what it has."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:  # not Linux
        return
    limit = pages * resource.getpagesize() + more_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _with_way_out(problem: str) -> str:
    if "allocate memory" in problem or "bad_alloc" in problem or "bad allocation" in problem:
        return f"{told_reason(problem)}; if the graph needs that much memory, allow it with --memory-limit"
    return problem


if __name__ == "__main__":
    main()

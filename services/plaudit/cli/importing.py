"""``plaudit import``: from an ONNX file to a version in the registry. Imports onnx; to be imported inside the
command.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plaudit.adapters.runtime.importer import CannotImport, ImportOptions, import_onnx
from plaudit.cli.failures import CommandFailed
from plaudit.compose.paths import data_dir
from plaudit.compose.registry import model_registry
from plaudit.compose.runtime import model_runtime
from plaudit.core.rollout import Change, promote
from plaudit.core.settings import Settings
from plaudit_models.bundle import CorruptBundle, Manifest


@dataclass(frozen=True, slots=True)
class Imported:
    """A published version; ``live``: True: it serves from now on."""

    manifest: Manifest
    live: bool


def read_actions(file: Path | None) -> list[str]:
    """Actions from a file with one a line; [] without a file. Raises CommandFailed."""
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"actions: {file}: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def read_golden(file: Path | None) -> dict[str, np.ndarray] | None:
    """Arrays by name from an .npz; None without a file. Raises CommandFailed."""
    if file is None:
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as error:
        raise CommandFailed(f"golden: {file}: {error}") from error


def import_model(settings: Settings, file: Path, name: str, options: ImportOptions, *, go_live: bool) -> Imported:
    """Publish the file as the next version of the model.

    Args:
        go_live: make it live even if another version is; the first version of a model always goes live.

    Raises:
        CommandFailed: with a sentence for the user.
    """
    registry = model_registry(settings, name)
    with tempfile.TemporaryDirectory(dir=data_dir(settings)) as made:
        folder = Path(made)
        try:
            import_onnx(file, name, folder, options)
            model_runtime(settings).load(folder)  # publish only a version that can serve
            manifest = registry.publish(folder)
        except (CannotImport, CorruptBundle) as error:
            raise CommandFailed(str(error)) from error
    rollout = registry.rollout()
    live = go_live or rollout.live is None
    if live:
        reason = f"{file.name} was imported"
        registry.set_rollout(promote(rollout, manifest.version, Change("plaudit import", time.time(), reason)))
    return Imported(manifest, live)

"""Versions to swap to, as the learner makes them: trunks with other weights, and on each trunk several heads
that follow made-up feedback. Written as folders; publishing them is the caller's.

Notation:
    b: recorded rows, a: number of actions, f: number of features
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from safetensors.numpy import load_file, save_file

from benchmarks.serving.models import IMPORT, write_graph
from plaudit.adapters.runtime.importer import import_onnx
from plaudit_models.bandit.features import FeatureSpace, features
from plaudit_models.bandit.head import build_head
from plaudit_models.bandit.improvement import HeadSettings
from plaudit_models.bandit.reward_model import empty_state, evidence_of_actions
from plaudit_models.bundle import HEAD, HEAD_GOLDEN, TRUNK, TRUNK_GOLDEN, Manifest, seal
from plaudit_models.spec import BASE_LOGITS, EMBEDDING, SCORES

_EMBEDDING_FEATURES = 192
_THUMBS = 200


def write_versions(home: Path, model: str, *, trunks: int, heads: int) -> list[list[Path]]:
    """Folders of versions: for each trunk, one for each of its heads; they share the trunk's files."""
    return [_write_trunk(home, model, seed, heads) for seed in range(1, trunks + 1)]


def _write_trunk(home: Path, model: str, seed: int, heads: int) -> list[Path]:
    imported = home / f"{model}-{seed}"
    imported.mkdir()
    manifest = import_onnx(write_graph(home, model, seed), model, imported, IMPORT)
    golden = load_file(imported / TRUNK_GOLDEN)
    rng = np.random.default_rng(seed)
    folders = []
    for number in range(heads):
        folder = home / f"{model}-{seed}-{number}"
        folder.mkdir()
        for name in (TRUNK, TRUNK_GOLDEN):
            os.link(imported / name, folder / name)
        _write_head(folder, manifest, golden, rng)
        seal(folder, replace(manifest, reason=f"head {number} on trunk {seed}"))
        folders.append(folder)
    return folders


def _write_head(
    folder: Path, manifest: Manifest, golden: dict[str, npt.NDArray[Any]], rng: np.random.Generator
) -> None:
    """Write a head as large and costly as a learned one: it follows random thumbs on the recorded features."""
    spec = manifest.spec
    space = FeatureSpace(manifest.trunk_digest, len(spec.actions), spec.embedding_size, _EMBEDDING_FEATURES)
    rows = rng.integers(0, len(golden[EMBEDDING]), _THUMBS)
    phi = features(space, golden[EMBEDDING][rows], golden[BASE_LOGITS][rows])  # [b, f]
    actions, thumbs = rng.integers(0, len(spec.actions), _THUMBS), rng.integers(0, 2, _THUMBS).astype(np.float64)
    state = empty_state(space).add(evidence_of_actions(space, phi, actions, thumbs))
    (folder / HEAD).write_bytes(build_head(HeadSettings(), state).SerializeToString())
    session = ort.InferenceSession(folder / HEAD, providers=["CPUExecutionProvider"])
    (scores,) = session.run([SCORES], {name: golden[name] for name in (EMBEDDING, BASE_LOGITS)})
    save_file({SCORES: scores}, folder / HEAD_GOLDEN)

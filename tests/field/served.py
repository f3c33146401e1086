"""Cases of the corpus as models of a running server, and the comparison with ONNX Runtime's own answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

from field.graphs import Arrays, Case
from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.adapters.runtime.importer import ImportOptions, import_onnx
from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.client import Client
from plaudit.compose.serving import inference_server
from plaudit.core.rollout import Change, promote
from plaudit.core.settings import ServingSettings, Settings
from plaudit.serving.models.rehearsal import rehearse
from plaudit_models.bandit.policy import probabilities
from plaudit_models.bundle import TRUNK_GOLDEN, Manifest
from plaudit_models.limits import DEFAULT_LIMITS

_FLOOR: Final = 0.02
_TOLERANCE: Final = 2e-3
_ROWS: Final = 2
"""Rows that are asked about alone, and then together."""


@dataclass(frozen=True, slots=True)
class Served:
    """A running server of several cases.

    Attributes:
        files: the file of each case.
        notes: what was said when it was imported.
        answers: of tritonclient, for each row alone and then for all together; arrays by output.
    """

    client: Client
    files: dict[str, Path]
    notes: dict[str, list[str]]
    answers: dict[str, list[dict[str, npt.NDArray[Any]]]]


@contextmanager
def serve(cases: Sequence[Case], home: Path) -> Iterator[Served]:
    """Import the cases, serve them, and ask tritonclient about all of them at once."""
    files, notes = {}, {}
    for case in cases:
        files[case.name], notes[case.name], _ = published(case, home / case.name, home / "data" / "registry")
    settings = Settings(
        model={},
        data_dir=home / "data",
        serving=ServingSettings(port=0, metrics_port=0, device="cpu", workers=1, max_batch=8),
    )
    log = SqliteLog(home / "data" / "log.sqlite")
    server = inference_server(settings, log)
    server.start()
    try:
        address = f"127.0.0.1:{server.port}"
        answers = _ask_tritonclient(address, cases, home)
        with Client(address) as client:
            yield Served(client, files, notes, answers)
    finally:
        server.stop()
        log.close()


def published(case: Case, home: Path, registry: Path) -> tuple[Path, list[str], Manifest]:
    """Import a case as the command does and make it live; its file, what was said, and its manifest."""
    made, folder = home / "given", home / "version"
    made.mkdir(parents=True)
    folder.mkdir()
    notes: list[str] = []
    file = case.make(made)
    manifest = import_onnx(file, case.name, folder, ImportOptions(**case.options), notes.append)
    rehearse(OnnxRuntime("cpu").load(folder), load_file(folder / TRUNK_GOLDEN), DEFAULT_LIMITS, max_batch=8)
    versions = DirectoryRegistry(registry, case.name)
    versions.publish(folder)
    versions.set_rollout(promote(versions.rollout(), 1, Change("test", 0.0, "imported")))
    return file, notes, manifest


def check(case: Case, served: Served) -> None:
    """Whatever the case says about itself: what was said at the import, and answers through both protocols."""
    notes = served.notes[case.name]
    assert len(notes) == len(case.notes), notes
    for note in notes:
        assert any(re.search(pattern, note) for pattern in case.notes), note
    spec = served.client.version(1, model=case.name).manifest["spec"]
    order = list(spec["actions"])
    policies = []
    *alone, together = served.answers[case.name]
    for row, answer in enumerate(alone):
        inputs = {name: array[row : row + 1] for name, array in case.rows.items()}
        expected = _own_answer(case, served.files[case.name], inputs, order)
        logits = _logits(case, expected, taken_for_probabilities=any("probabilities" in note for note in notes))
        policies.append(probabilities(logits, np.ones(logits.shape, np.bool_), _FLOOR)[0])
        native = [name for name in answer if name in expected]
        assert case.scores in native
        for name in native:
            _assert_close(answer[name], expected[name])
        content = {name: array[0, ...] for name, array in inputs.items()}
        prediction = served.client.predict(content, model=case.name, greedy=True, top_k=0)
        _assert_close([prediction.scores[action] for action in order], policies[-1])
        assert prediction.action == order[int(policies[-1].argmax())]
    if "probabilities" not in spec["outputs"]:  # the graph's own would be in place of the policy's
        _assert_close(together["probabilities"], np.stack(policies))
    else:
        _assert_close(together["probabilities"], np.concatenate([each["probabilities"] for each in alone]))


def _assert_close(found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), rtol=_TOLERANCE, atol=_TOLERANCE)


def _own_answer(case: Case, file: Path, inputs: Arrays, labels: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """What ONNX Runtime gives for the file itself, for one row; maps as arrays in the order of ``labels``."""
    if case.own_answer is not None:
        return case.own_answer(inputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options)
    names = [each.name for each in session.get_outputs()]
    answers = {}
    for name, given in zip(names, session.run(names, dict(inputs)), strict=True):
        if isinstance(given, list) and isinstance(given[0], dict):
            by_label = [{str(label): number for label, number in each.items()} for each in given]
            given = np.array([[each[label] for label in labels] for each in by_label], np.float32)
        answers[name] = given
    return answers


def _logits(
    case: Case, answer: dict[str, npt.NDArray[Any]], *, taken_for_probabilities: bool
) -> npt.NDArray[np.float32]:
    """Scores ``[1, a]`` as the import is to take them from the file's own output."""
    scores = answer[case.scores].astype(np.float64)
    is_probability = taken_for_probabilities or case.options.get("probabilities", False)
    if scores.ndim == 1 or scores.shape[1] == 1:
        column = scores.reshape(1, 1)
        scores = np.concatenate([1 - column if is_probability else 0 * column, column], axis=1)
    if is_probability:
        scores = np.log(np.maximum(scores, 1e-12))
    return scores.astype(np.float32)


def _ask_tritonclient(address: str, cases: Sequence[Case], home: Path) -> dict[str, list[dict[str, npt.NDArray[Any]]]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    plan: list[tuple[str, dict[str, str]]] = []

    def ask(model: str, inputs: Arrays) -> None:
        keys = {}
        for name, array in inputs.items():
            keys[name] = f"q{len(arrays)}"
            arrays[keys[name]] = np.ascontiguousarray(array)
        plan.append((model, keys))

    for case in cases:
        for row in range(_ROWS):
            ask(case.name, {name: array[row : row + 1] for name, array in case.rows.items()})
        ask(case.name, {name: array[:_ROWS] for name, array in case.rows.items()})
    questions, answers = home / "questions", home / "answers"
    save_file(arrays, questions)
    Path(f"{questions}.json").write_text(json.dumps(plan))
    script = Path(__file__).with_name("triton_client.py")
    done = subprocess.run(
        [sys.executable, script, address, questions, answers], capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode != 0:
        pytest.fail(done.stderr[-2000:])
    made = load_file(answers)
    listed = [
        {name: made[key] for name, key in outputs.items()}
        for outputs in json.loads(Path(f"{answers}.json").read_text())
    ]
    each = _ROWS + 1
    return {case.name: listed[place * each : (place + 1) * each] for place, case in enumerate(cases)}

"""Any ONNX file → a version folder: read, run, completed to the graph contract, and recorded.

What the file declares is a hint; what the graph gives when it is run decides. The graph keeps its inputs, as required
tensor modalities, and its outputs, as native ones; the contract's outputs are added beside them. Runs a foreign graph
without bounds of its own: callers give it a process that has some. Knows nothing about registries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from plaudit.adapters.runtime.divisions import guard_divisions
from plaudit.adapters.runtime.graph_file import CannotImport, read_graph
from plaudit.adapters.runtime.graph_surgery import (
    add_contract,
    check_operators,
    declare_output,
    fix_batch,
    keep_outputs,
    see_through_zipmaps,
)
from plaudit.adapters.runtime.import_inputs import Arrays, ImportOptions, inputs_of, leave_out_what_is_no_tensor
from plaudit.adapters.runtime.import_outputs import (
    actions_of,
    embedding_of,
    logits_of,
    native_outputs,
    say_how_batches_are_served,
)
from plaudit.adapters.runtime.import_runs import ImportRuns, open_graph, open_in_some_ir
from plaudit.core.text.reasons import told_reason
from plaudit_models.bandit.head import write_initial_head
from plaudit_models.bundle import CARD, HEAD, HEAD_GOLDEN, TRUNK, TRUNK_GOLDEN, Manifest, seal
from plaudit_models.spec import (
    BASE_LOGITS,
    EMBEDDING,
    SCORES,
    InvalidSpec,
    ModelSpec,
)
from plaudit_models.version_card import card

__all__ = ["CannotImport", "ImportOptions", "import_onnx"]


def _silent(_: str) -> None:
    pass


def import_onnx(
    file: Path, name: str, folder: Path, options: ImportOptions, note: Callable[[str], None] = _silent
) -> Manifest:
    """Make the version folder of an ONNX file, with data files beside it if it has any.

    Args:
        name: name of the model.
        folder: empty; gets the version.
        note: told what was assumed or left out, a sentence each.

    Raises:
        CannotImport: the file is no ONNX graph that can be served, or the options do not fit it.
    """
    graph = read_graph(file)
    check_operators(graph)
    guard_divisions(graph)
    labels = see_through_zipmaps(graph)
    leave_out_what_is_no_tensor(graph, note)
    inputs = inputs_of(graph, options)
    session = open_in_some_ir(folder / TRUNK, graph, note)
    runs = ImportRuns(session, inputs, options, graph.graph)
    say_how_batches_are_served(runs, graph, note)
    logits = logits_of(runs, options, note)
    embedding = embedding_of(runs, logits, options)
    if runs.one_by_one and not runs.fixed_rows:
        fix_batch(graph, inputs)
    outputs = native_outputs(runs, graph, {BASE_LOGITS: logits, EMBEDDING: embedding}, note)
    actions = actions_of(logits, labels, options)
    try:
        spec = ModelSpec(name, inputs, actions, 2 if embedding.column else embedding.width, outputs)
    except InvalidSpec as error:
        raise CannotImport(f"{file}: {error}") from error
    keep_outputs(graph, outputs)
    for each, output in outputs.items():
        declare_output(graph, each, output.shape)
    add_contract(graph, logits, embedding)
    (folder / TRUNK).write_bytes(graph.SerializeToString())
    write_initial_head(folder / HEAD, spec.embedding_size, len(actions))
    _record(folder, spec, runs.given)
    reason = f"{file.name} was imported"
    manifest = Manifest(
        spec=spec, kind="imported", created_at_s=time.time(), files={}, floor=options.floor, reason=reason
    )
    manifest = seal(folder, manifest)
    (folder / CARD).write_text(card(json.loads(manifest.to_json())), encoding="utf-8")
    return manifest


def _record(folder: Path, spec: ModelSpec, given: Arrays) -> None:
    """Record inputs, and the contract's outputs for them."""
    graph = open_graph(folder / TRUNK)
    try:
        embedding, base_logits = graph.run([EMBEDDING, BASE_LOGITS], given)
    except Exception as error:
        raise CannotImport(f"the completed graph cannot be run: {told_reason(error)}") from error
    rows = len(next(iter(given.values())))
    for name, made, width in (
        (BASE_LOGITS, base_logits, len(spec.actions)),
        (EMBEDDING, embedding, spec.embedding_size),
    ):
        if made.shape != (rows, width) or not np.isfinite(made).all():
            raise CannotImport(f"{name}: {rows} rows gave {list(made.shape)}, or values that are not finite")
    inputs = {name: np.ascontiguousarray(array) for name, array in given.items()}
    save_file({**inputs, EMBEDDING: embedding, BASE_LOGITS: base_logits}, folder / TRUNK_GOLDEN)
    save_file({SCORES: base_logits}, folder / HEAD_GOLDEN)

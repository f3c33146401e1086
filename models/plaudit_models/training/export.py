"""Export of a trained fusion policy as a version folder: graphs, weights, golden pairs; checked against torch, sealed.

Knows nothing about how the policy was trained or where version folders are kept.

Exporting takes seconds; :func:`reexport_trunk` reuses an exported graph and replaces its weights, in milliseconds.
That works because the graph is exported without the optimiser that would fold weights into each other: every weight of
the module is one initialiser, named ``weights/`` + its name in the state dict. Onnxruntime folds them as it loads.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plaudit_models.bandit.head import IR_VERSION, OPSET, write_initial_head
from plaudit_models.bundle import (
    HEAD,
    HEAD_GOLDEN,
    TEXT_SCORER,
    TEXT_SCORER_GOLDEN,
    TRUNK,
    TRUNK_GOLDEN,
    WEIGHTS,
    Manifest,
    read_manifest,
    seal,
)
from plaudit_models.spec import BASE_LOGITS, EMBEDDING, PRESENT, TOKENS, VECTORS, ModelSpec
from plaudit_models.training.networks.fusion import Encoder, FusionPolicy, fusion_config_from_dict

Arrays = Mapping[str, npt.NDArray[Any]]

PARITY_TOLERANCE: Final = 1e-4
_WEIGHT: Final = "weights/"
_VALUE: Final = "values/"
_CONFIG: Final = "fusion"
_NOT_IN_GRAPH: Final = (".num_batches_tracked", ".action_texts")
"""Buffers that only training reads: a counter of batch norm, and the texts that the text scorer is trained on."""
_TEXT_SCORER: Final = "text_scorer."
_GOLDEN_TEXTS: Final = 16


class ExportMismatch(Exception):
    """Difference of a graph from its torch module; the message names the output or weight that differs."""


def export_trunk(model: FusionPolicy, path: Path) -> None:
    """Write ``model`` as a trunk graph with dynamic batch. Takes seconds; :func:`reexport_trunk` does not."""
    model.eval()
    spec = model.spec
    example = tuple(torch.from_numpy(array) for array in _blank_inputs(spec, batch=2).values())
    dynamic = (tuple({0: torch.export.Dim.DYNAMIC} for _ in example),)
    proto = _exported(model, example, dynamic)
    _name_by_contract(proto, "trunk", (*spec.modalities, PRESENT), (EMBEDDING, BASE_LOGITS), "b", model.state_dict())
    path.write_bytes(proto.SerializeToString())


def export_text_scorer(model: FusionPolicy, path: Path) -> None:
    """Write the part of ``model`` that reads texts of dynamic actions as a graph; any number of them. Takes a
    second.
    """
    texts = _TextScorerGraph(model).eval()
    _, modality = model.spec.dynamic_action_modality
    example = (torch.zeros((2, modality.max_tokens), dtype=torch.int64),)
    proto = _exported(texts, example, ({0: torch.export.Dim.DYNAMIC},))
    _name_by_contract(proto, "text_scorer", (TOKENS,), (VECTORS,), "k", texts.state_dict())
    path.write_bytes(proto.SerializeToString())


def _exported(module: nn.Module, example: tuple[Tensor, ...], dynamic_shapes: tuple[Any, ...]) -> onnx.ModelProto:
    options: dict[str, Any] = {"opset_version": OPSET, "dynamo": True, "optimize": False, "verbose": False}
    with _quiet_exporter():
        program = torch.onnx.export(module, example, dynamic_shapes=dynamic_shapes, **options)
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


class _TextScorerGraph(nn.Module):
    """:meth:`FusionPolicy.text_vectors` as a module, ``[k, t] → [k, d]``; its weights have the policy's names."""

    def __init__(self, policy: FusionPolicy) -> None:
        super().__init__()
        self._text = policy.spec.dynamic_action_modality[0]
        self.encoders = nn.ModuleDict({self._text: policy.encoders[self._text]})
        self.text_scorer = policy.text_scorer

    def forward(self, tokens: Tensor) -> Tensor:
        assert self.text_scorer is not None
        encoder = self.encoders[self._text]
        assert isinstance(encoder, Encoder)
        return self.text_scorer(encoder(encoder.prepare(tokens)))


def trunk_state(model: FusionPolicy) -> dict[str, Tensor]:
    """Weights that the trunk graph holds, by name."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(_TEXT_SCORER)}


def reexport_trunk(parent_trunk: Path, state: Mapping[str, Tensor], path: Path) -> None:
    """Write the graph of ``parent_trunk`` with the weights of ``state`` in place of its own.

    Args:
        parent_trunk: a graph written by :func:`export_trunk` from a module of the same spec and config.
        state: the weights of the new module, see :func:`trunk_state`.
        path: where to write the new graph.

    Raises:
        ExportMismatch: the graph's weights and ``state`` differ in a name, a shape or a dtype.
    """
    proto = onnx.load(parent_trunk)
    weights = {name: tensor for name, tensor in state.items() if not name.endswith(_NOT_IN_GRAPH)}
    initializers = {i.name.removeprefix(_WEIGHT): i for i in proto.graph.initializer if i.name.startswith(_WEIGHT)}
    if initializers.keys() != weights.keys():
        differing = sorted(initializers.keys() ^ weights.keys())
        raise ExportMismatch(f"{parent_trunk}: only one of graph and state dict has the weights {differing}")
    for name, initializer in initializers.items():
        array = weights[name].detach().cpu().contiguous().numpy()
        replaced = numpy_helper.from_array(array, initializer.name)
        if (list(replaced.dims), replaced.data_type) != (list(initializer.dims), initializer.data_type):
            raise ExportMismatch(
                f"{parent_trunk}: weight {name} is {list(initializer.dims)} in the graph, {list(array.shape)} in the "
                f"state dict (ONNX dtypes {initializer.data_type} and {replaced.data_type})"
            )
        initializer.CopyFrom(replaced)
    path.write_bytes(proto.SerializeToString())


def check_parity(model: FusionPolicy, trunk: Path, inputs: Arrays) -> dict[str, npt.NDArray[np.float32]]:
    """Run ``inputs`` through the trunk graph and through torch, one after the other.

    Args:
        model: the module that ``trunk`` was exported from.
        trunk: the graph.
        inputs: the graph's inputs by name, ``present`` included.

    Returns:
        The graph's outputs, by name.

    Raises:
        ExportMismatch: an output differs by more than ``PARITY_TOLERANCE`` anywhere.
    """
    outputs = _run(trunk, inputs)
    model.eval()
    with torch.no_grad():
        embedding, base_logits = model(*(torch.from_numpy(inputs[name]) for name in (*model.spec.modalities, PRESENT)))
    _require_parity(trunk, outputs, {EMBEDDING: embedding, BASE_LOGITS: base_logits})
    return outputs


def _require_parity(graph: Path, outputs: Arrays, expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        worst = float(np.abs(outputs[name] - tensor.numpy()).max())
        if not worst <= PARITY_TOLERANCE:
            raise ExportMismatch(f"{graph}: {name} differs from torch by {worst:.2g}, more than {PARITY_TOLERANCE}")


def export_version(
    model: FusionPolicy, folder: Path, manifest: Manifest, golden_inputs: Arrays, *, parent_trunk: Path | None = None
) -> Manifest:
    """Write a sealed version folder whose head scores are the base logits.

    Args:
        model: the trained policy.
        folder: an existing folder; a tokenizer.json already in it is sealed with the rest.
        manifest: everything but the file digests.
        golden_inputs: recorded trunk inputs by name, ``present`` included; they travel with the version.
        parent_trunk: a trunk graph of the same spec and config to reuse, and the text scorer graph beside it where the
            spec scores text; without it graphs are exported anew.

    Returns:
        The sealed manifest.

    Raises:
        ExportMismatch: the graphs do not do what torch does.
    """
    trunk, head = folder / TRUNK, folder / HEAD
    if parent_trunk is None:
        export_trunk(model, trunk)
    else:
        reexport_trunk(parent_trunk, trunk_state(model), trunk)
    outputs = check_parity(model, trunk, golden_inputs)
    save_arrays({**golden_inputs, **outputs}, folder / TRUNK_GOLDEN)
    write_initial_head(head, model.spec.embedding_size, len(model.spec.actions))
    save_arrays(_run(head, outputs), folder / HEAD_GOLDEN)
    if model.text_scorer is not None:
        parent = None
        if parent_trunk is not None:
            parent = parent_trunk.with_name(read_manifest(parent_trunk.parent).stored_name(TEXT_SCORER))
        _write_text_scorer(model, folder, golden_inputs, parent)
    save_weights(model, folder / WEIGHTS)
    return seal(folder, manifest)


def _write_text_scorer(model: FusionPolicy, folder: Path, golden_inputs: Arrays, parent: Path | None) -> None:
    """Export the text scorer, with golden pairs: texts that users wrote, and names of actions."""
    assert model.text_scorer is not None
    graph = folder / TEXT_SCORER
    if parent is None:
        export_text_scorer(model, graph)
    else:
        reexport_trunk(parent, _TextScorerGraph(model).state_dict(), graph)
    written = golden_inputs[model.spec.dynamic_action_modality[0]]
    texts = np.unique(np.concatenate([written, model.text_scorer.action_texts.numpy()[:_GOLDEN_TEXTS]]), axis=0)
    save_arrays({TOKENS: texts, VECTORS: check_text_scorer_parity(model, graph, texts)}, folder / TEXT_SCORER_GOLDEN)


def check_text_scorer_parity(model: FusionPolicy, graph: Path, texts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Run texts ``[k, t]`` through the text scorer graph and through torch; returns the graph's vectors ``[k, d]``.

    Raises:
        ExportMismatch: they differ by more than ``PARITY_TOLERANCE`` anywhere.
    """
    outputs = _run(graph, {TOKENS: texts})
    model.eval()
    with torch.no_grad():
        _require_parity(graph, outputs, {VECTORS: model.text_vectors(torch.from_numpy(texts))})
    return outputs[VECTORS]


def save_weights(model: FusionPolicy, path: Path) -> None:
    """Write the state dict, and the config it belongs to, as safetensors."""
    config = json.dumps(model.config.to_dict())
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path, metadata={_CONFIG: config})


def load_policy(folder: Path, spec: ModelSpec) -> FusionPolicy:
    """Torch module of a version folder, in eval mode.

    Raises:
        FileNotFoundError: the version has no weights (it was imported as a graph).
        ExportMismatch: the weights were not written by :func:`save_weights`, or are not those of ``spec``.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this version has no torch weights, so it cannot be trained further")
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    try:
        model = FusionPolicy(spec, fusion_config_from_dict(json.loads(metadata[_CONFIG])))
        model.load_state_dict(load_file(path))
    except (KeyError, TypeError, RuntimeError) as error:
        raise ExportMismatch(f"{path}: not the weights of a fusion policy of model {spec.name!r}: {error}") from error
    return model.eval()


def _blank_inputs(spec: ModelSpec, *, batch: int) -> dict[str, npt.NDArray[Any]]:
    blank: dict[str, npt.NDArray[Any]] = {
        name: np.zeros((batch, *modality.shape), np.int64 if modality.kind == "text" else np.float32)
        for name, modality in spec.modalities.items()
    }
    return blank | {PRESENT: np.ones((batch, len(spec.modalities)), np.float32)}


def _name_by_contract(
    proto: onnx.ModelProto,
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    rows: str,
    state: Mapping[str, Tensor],
) -> None:
    """Call the graph ``name`` and its first axis ``rows``; give inputs and outputs the contract's names, weights the
    prefix ``weights/`` and all else ``values/``; then check the graph.

    A modality, a weight and an inner value may otherwise share a name ("embedding" is what the exporter calls a
    look-up); names of the contract hold no slash, so with the prefixes they cannot.
    """
    graph = proto.graph
    read = {value for node in graph.node for value in node.input}
    for weight in [i for i in graph.initializer if i.name.startswith(_TEXT_SCORER) and i.name not in read]:
        graph.initializer.remove(weight)  # of the module, but not of this graph
    # What a module computes once and does not save, such as the numbers of positions, is no weight.
    names = {i.name: _WEIGHT + i.name for i in graph.initializer if i.name in state}
    names |= dict(zip((i.name for i in graph.input), inputs, strict=True))
    names |= dict(zip((o.name for o in graph.output), outputs, strict=True))

    def renamed(name: str) -> str:
        return names.get(name, _VALUE + name) if name else name  # an empty name is an input left out

    for node in graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for weight in graph.initializer:
        weight.name = renamed(weight.name)
    for tensor in (*graph.input, *graph.output):
        tensor.name = renamed(tensor.name)
        tensor.type.tensor_type.shape.dim[0].dim_param = rows
    del graph.value_info[:]
    graph.name = name
    proto.producer_name = "plaudit"
    proto.ir_version = IR_VERSION
    described: tuple[Any, ...] = (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer)
    for part in described:
        del part.metadata_props[:]  # stack traces of this machine
    onnx.checker.check_model(proto, full_check=True)


def _run(graph: Path, inputs: Arrays) -> dict[str, npt.NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about packages and operators that no fusion policy uses."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

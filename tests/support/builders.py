"""Small real things for tests: events, contents, a tiny model spec and tiny version folders.

A tiny version is a real one: ONNX graphs, tokenizer, golden pairs and a sealed manifest, made in milliseconds without
torch. Its trunk is a random but fixed function of every modality, so different contents give different embeddings.

Notation:
    b: batch size, d: embedding size, a: number of actions, t: tokens
"""

from __future__ import annotations

import io
import shutil
import uuid
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from plaudit.core.events import (
    Content,
    Decision,
    EncodedContent,
    Features,
    Feedback,
    Role,
    Signal,
    TensorContent,
    TextContent,
    Thumb,
)
from plaudit_models.bandit.head import IR_VERSION, OPSET, write_initial_head
from plaudit_models.bandit.reward_model import load_with_metadata
from plaudit_models.bundle import (
    DYNAMIC_HEAD,
    FORMER_NAMES,
    HEAD,
    HEAD_GOLDEN,
    TEXT_SCORER,
    TEXT_SCORER_GOLDEN,
    TOKENIZER,
    TRUNK,
    TRUNK_FILES,
    TRUNK_GOLDEN,
    Manifest,
    VersionKind,
    read_manifest,
    seal,
)
from plaudit_models.preprocess import assemble, decode, input_dtype, train_tokenizer
from plaudit_models.spec import (
    BASE_LOGITS,
    EMBEDDING,
    PRESENT,
    SCORES,
    TOKENS,
    VECTORS,
    AudioModality,
    ImageModality,
    ModelSpec,
    TensorModality,
    TextModality,
)

NOW_S: Final = 1_700_000_000.0
"""UTC seconds; when events happen unless a test says otherwise."""


# --- events ----------------------------------------------------------------------------------------------------------


def a_decision(prediction_id: str | None = None, **fields: Any) -> Decision:
    """A decision of the tiny model. ``fields`` replace any of its fields."""
    spec = tiny_spec()
    defaults: dict[str, Any] = {
        "prediction_id": prediction_id or f"prediction-{uuid.uuid4()}",
        "model": spec.name,
        "time_s": NOW_S,
        "user_id": "ada",
        "version": 1,
        "version_digest": "d1" * 32,
        "role": Role.LIVE,
        "action": spec.actions[0],
        "propensity": 0.5,
        "features": Features(
            trunk_digest="f1" * 32,
            embedding=np.linspace(-1.0, 1.0, spec.embedding_size, dtype=np.float32),
            base_logits=np.linspace(0.0, 1.0, len(spec.actions), dtype=np.float32),
        ),
        "content": {"question": TextContent("which animal is it?")},
    }
    return Decision(**(defaults | fields))


def some_feedback(prediction_id: str, signal: Signal | None = None, **fields: Any) -> Feedback:
    """Feedback on ``prediction_id``: a thumb up, unless ``signal`` says otherwise."""
    defaults: dict[str, Any] = {
        "feedback_id": f"feedback-{uuid.uuid4()}",
        "prediction_id": prediction_id,
        "time_s": NOW_S + 1.0,
        "user_id": "ada",
        "signal": signal if signal is not None else Thumb(up=True),
    }
    return Feedback(**(defaults | fields))


# --- content ---------------------------------------------------------------------------------------------------------


def png(seed: int = 0, *, size: int = 8) -> bytes:
    """A grey image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def wav(seed: int = 0, *, sample_rate_hz: int = 8_000, duration_s: float = 0.05) -> bytes:
    """A sound of noise: 16-bit mono."""
    samples = np.random.default_rng(seed).integers(-20_000, 20_000, round(sample_rate_hz * duration_s), dtype=np.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate_hz)
        writer.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def tiny_content(seed: int = 0) -> dict[str, Content]:
    """Content for every modality of :func:`tiny_spec`; another seed gives other content."""
    words = ("which", "animal", "is", "it", "here", "there", "loud", "small")
    rng = np.random.default_rng(seed)
    return {
        "image": EncodedContent("image", png(seed)),
        "audio": EncodedContent("audio", wav(seed)),
        "question": TextContent(" ".join(rng.choice(words, 4))),
        "sensor": TensorContent(rng.normal(size=4).astype(np.float32)),
    }


# --- the tiny model --------------------------------------------------------------------------------------------------


def tiny_spec(name: str = "tiny", *, scores_text: bool = False) -> ModelSpec:
    """One modality of each kind, four actions, d = 8."""
    return ModelSpec(
        name=name,
        modalities={
            "image": ImageModality(height=8, width=8, channels=1),
            "audio": AudioModality(sample_rate_hz=8_000, max_duration_s=0.1),
            "question": TextModality(max_tokens=8),
            "sensor": TensorModality(shape=(4,)),
        },
        actions=("cat", "dog", "bird", "fish"),
        embedding_size=8,
        scores_text=scores_text,
    )


def tiny_tokenizer() -> Tokenizer:
    return train_tokenizer(["which animal is it here", "loud or small there"], vocabulary_size=300)


def tiny_bundle(
    folder: Path,
    *,
    spec: ModelSpec | None = None,
    seed: int = 0,
    kind: VersionKind = "pretrained",
    parent: int | None = None,
    floor: float = 0.02,
    prefer: str | None = None,
    reason: str = "made by a test",
    data: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write a sealed version folder.

    Args:
        folder: is made; must not exist yet.
        spec: :func:`tiny_spec` unless given.
        seed: of the trunk's weights; another seed is another trunk.
        prefer: an action that the head adds 4 to the score of; None is the initial head.
    """
    spec = spec or tiny_spec()
    folder.mkdir(parents=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(folder / TOKENIZER))
    onnx.save(_trunk(spec, tokenizer.get_vocab_size(), seed), folder / TRUNK)
    inputs = golden_inputs(spec)
    save_file({**inputs, **run_graph(folder / TRUNK, inputs)}, folder / TRUNK_GOLDEN)
    _write_head(folder, spec, prefer)
    if spec.scores_text:
        onnx.save(_text_scorer_graph(spec, tokenizer.get_vocab_size(), seed), folder / TEXT_SCORER)
        texts = {TOKENS: inputs[spec.dynamic_action_modality[0]]}
        save_file(texts | run_graph(folder / TEXT_SCORER, texts), folder / TEXT_SCORER_GOLDEN)
    manifest = Manifest(
        spec=spec,
        kind=kind,
        created_at_s=NOW_S,
        files={},
        parent=parent,
        floor=floor,
        reason=reason,
        data=data or {},
        metrics=metrics or {},
    )
    return seal(folder, manifest)


def tiny_head_refresh(
    folder: Path, parent_folder: Path, *, prefer: str | None, data: Mapping[str, Any] | None = None
) -> Manifest:
    """Write a sealed version folder with the trunk of ``parent_folder`` and its own head (see ``prefer`` above)."""
    parent = read_manifest(parent_folder)
    folder.mkdir(parents=True)
    for name in TRUNK_FILES:
        if parent.has(name):
            shutil.copyfile(parent_folder / parent.stored_name(name), folder / name)
    _write_head(folder, parent.spec, prefer)
    manifest = Manifest(
        spec=parent.spec,
        kind="head",
        created_at_s=NOW_S,
        files={},
        parent=parent.version,
        floor=parent.floor,
        reason="made by a test",
        data=data or {},
    )
    return seal(folder, manifest)


def with_former_names(folder: Path) -> Manifest:
    """Reseal a version folder with the names that files and metadata had before 0.1.0."""
    manifest = read_manifest(folder)
    for name, former in FORMER_NAMES.items():
        if name in manifest.files:
            (folder / name).rename(folder / former)
    head = folder / FORMER_NAMES[DYNAMIC_HEAD]
    if head.exists():
        tensors, metadata = load_with_metadata(head.read_bytes())
        metadata["space"] = metadata["space"].replace("text_scorer_digest", "candidate_digest")
        save_file(tensors, head, metadata)
    return seal(folder, manifest)


def golden_inputs(spec: ModelSpec, *, rows: int = 4) -> dict[str, npt.NDArray[Any]]:
    """Trunk inputs of random content, each row lacking another modality but the first."""
    rng = np.random.default_rng(1)
    inputs: dict[str, npt.NDArray[Any]] = {}
    for name, modality in spec.modalities.items():
        shape = (rows, *modality.shape)
        if modality.kind == "text":
            inputs[name] = rng.integers(1, 257, shape, dtype=np.int64)
        else:
            inputs[name] = rng.random(shape, dtype=np.float32)
    present = np.ones((rows, len(spec.modalities)), np.float32)
    for row in range(1, rows):
        present[row, row % len(spec.modalities)] = 0.0 if len(spec.modalities) > 1 else 1.0
    inputs[PRESENT] = present
    return inputs


def trunk_inputs(folder: Path, contents: list[Mapping[str, Content]]) -> dict[str, npt.NDArray[Any]]:
    """Inputs of the trunk in ``folder`` for ``contents``."""
    spec = read_manifest(folder).spec
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    rows = []
    for content in contents:
        row = {}
        for name, part in content.items():
            raw = {EncodedContent: "data", TextContent: "text", TensorContent: "array"}[type(part)]
            row[name] = decode(getattr(part, raw), spec.modalities[name], name=name, tokenizer=tokenizer)
        rows.append(row)
    return assemble(spec, rows)


def run_graph(path: Path, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
    """Every output of the graph, by name."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = {i.name for i in session.get_inputs()}
    return dict(zip(names, session.run(names, {k: v for k, v in inputs.items() if k in wanted}), strict=True))


def _trunk(spec: ModelSpec, vocabulary_size: int, seed: int) -> onnx.ModelProto:
    """embedding = tanh(Σ over modalities of present · (content · W)), base_logits = embedding · V."""
    rng = np.random.default_rng(seed)
    d, a = spec.embedding_size, len(spec.actions)
    nodes, weights, terms = [], [], []

    def weight(name: str, *shape: int, scale: float) -> str:
        array = (scale * rng.normal(size=shape)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, name))
        return name

    def constant(name: str, values: list[int]) -> str:
        weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    axis = constant("w/axis", [1])
    for column, (name, modality) in enumerate(spec.modalities.items()):
        if modality.kind == "text":
            table = weight(f"w/{name}", vocabulary_size, d, scale=0.2)
            tokens = node("Gather", [table, name], f"v/{name}/tokens")
            flat = node("ReduceSum", [tokens, axis], f"v/{name}/flat", keepdims=0)
        else:
            size = int(np.prod(modality.shape))
            row = node("Reshape", [name, constant(f"w/{name}/shape", [-1, size])], f"v/{name}/row")
            flat = node("MatMul", [row, weight(f"w/{name}", size, d, scale=size**-0.5)], f"v/{name}/flat")
        mask = node("Gather", [PRESENT, constant(f"w/{name}/column", [column])], f"v/{name}/mask", axis=1)
        terms.append(node("Mul", [flat, mask], f"v/{name}/term"))
    node("Tanh", [node("Sum", terms, "v/sum")], EMBEDDING)
    node("MatMul", [EMBEDDING, weight("w/actions", d, a, scale=1.0)], BASE_LOGITS)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(input_dtype(m)), ["b", *m.shape])
        for name, m in spec.modalities.items()
    ]
    inputs.append(helper.make_tensor_value_info(PRESENT, TensorProto.FLOAT, ["b", len(spec.modalities)]))
    outputs = [
        helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["b", d]),
        helper.make_tensor_value_info(BASE_LOGITS, TensorProto.FLOAT, ["b", a]),
    ]
    return _model(helper.make_graph(nodes, "trunk", inputs, outputs, weights))


def _text_scorer_graph(spec: ModelSpec, vocabulary_size: int, seed: int) -> onnx.ModelProto:
    """vectors = Σ over tokens of a vector of their own, 0 of padding."""
    table = np.random.default_rng(seed + 1).normal(size=(vocabulary_size, spec.embedding_size)).astype(np.float32)
    table[0] = 0.0
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["w/words", TOKENS], ["v/words"]),
            helper.make_node("ReduceSum", ["v/words", "w/axis"], [VECTORS], keepdims=0),
        ],
        "candidate",
        [helper.make_tensor_value_info(TOKENS, TensorProto.INT64, ["k", spec.dynamic_action_modality[1].max_tokens])],
        [helper.make_tensor_value_info(VECTORS, TensorProto.FLOAT, ["k", spec.embedding_size])],
        [numpy_helper.from_array(table, "w/words"), numpy_helper.from_array(np.array([1], np.int64), "w/axis")],
    )
    return _model(graph)


def _write_head(folder: Path, spec: ModelSpec, prefer: str | None) -> None:
    d, a = spec.embedding_size, len(spec.actions)
    if prefer is None:
        write_initial_head(folder / HEAD, d, a)
    else:
        bias = np.zeros((1, a), np.float32)
        bias[0, spec.action_index(prefer)] = 4.0
        graph = helper.make_graph(
            [helper.make_node("Add", [BASE_LOGITS, "bias"], [SCORES])],
            "head",
            [
                helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["b", d]),
                helper.make_tensor_value_info(BASE_LOGITS, TensorProto.FLOAT, ["b", a]),
            ],
            [helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["b", a])],
            [numpy_helper.from_array(bias, "bias")],
        )
        onnx.save(_model(graph), folder / HEAD)
    save_file(run_graph(folder / HEAD, load_file(folder / TRUNK_GOLDEN)), folder / HEAD_GOLDEN)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model

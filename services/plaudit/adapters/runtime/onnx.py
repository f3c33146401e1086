"""ModelRuntime on ONNX Runtime: version folders as proven sessions. Knows nothing about requests or rollouts.

Notation:
    b: batch size, d: embedding size, a: number of actions, k: number of dynamic actions
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load
from tokenizers import Tokenizer

from plaudit.adapters.runtime.sealed_files import SealedFiles
from plaudit.adapters.runtime.session import CPU, Arrays, Device, Graph, choose_providers, return_free_memory
from plaudit.core.ports.runtime import TrunkOutputs
from plaudit.core.text.reasons import told_reason
from plaudit_models.bandit.dynamic_actions import DynamicActionHead, dynamic_action_head_from_bytes
from plaudit_models.bandit.reward_model import CorruptState
from plaudit_models.bundle import (
    DYNAMIC_HEAD,
    DYNAMIC_HEAD_GOLDEN,
    HEAD,
    HEAD_GOLDEN,
    TEXT_SCORER,
    TEXT_SCORER_GOLDEN,
    TOKENIZER,
    TRUNK,
    TRUNK_GOLDEN,
    CorruptBundle,
    FileDigest,
    Manifest,
    digest_file,
)
from plaudit_models.preprocess import input_dtype, tokenize_all, tokenizer_from_bytes
from plaudit_models.spec import BASE_LOGITS, EMBEDDING, PRESENT, SCORES, TOKENS, VECTORS, ModelSpec, TextModality

Float = npt.NDArray[np.float32]

ABSOLUTE_TOLERANCE: Final = 1e-4
RELATIVE_TOLERANCE: Final = 1e-3
"""Largest difference between golden outputs and the recorded ones: other processors and batch sizes round
differently.
"""

_ONNX_DTYPES: Final = {"float64": "double", "float32": "float"}
"""ONNX Runtime's names of dtypes that differ from numpy's."""
_CACHED_DIGESTS: Final = 10_000


class OnnxRuntime:
    """See :class:`plaudit.core.ports.runtime.ModelRuntime`.

    Args:
        device: ``auto`` takes CUDA where there is any.
        threads: threads that one evaluation may use.
        gpu_mem_limit_bytes, cuda_graphs, tensorrt_dir: see :func:`plaudit.adapters.runtime.session.choose_providers`.

    Raises:
        ConfigError: a setting asks for a device or library that is not there.
    """

    def __init__(
        self,
        device: Device = "auto",
        threads: int = 1,
        *,
        gpu_mem_limit_bytes: int | None = None,
        cuda_graphs: bool = False,
        tensorrt_dir: Path | None = None,
    ) -> None:
        providers = choose_providers(
            device, gpu_mem_limit_bytes=gpu_mem_limit_bytes, cuda_graphs=cuda_graphs, tensorrt_dir=tensorrt_dir
        )
        self._open = partial(Graph, providers=providers, threads=threads, cuda_graphs=cuda_graphs)
        # Texts of dynamic actions are short and their vectors are cached, so they do not queue for a GPU.
        self._open_small = partial(Graph, providers=[(CPU, {})], threads=threads)
        self._lock = threading.Lock()
        self._trunks: WeakValueDictionary[tuple[str | None, ...], _Trunk] = WeakValueDictionary()
        self._texts: WeakValueDictionary[tuple[str, ...], _TextGraph] = WeakValueDictionary()
        self._digests: dict[tuple[int, int, int, int], FileDigest] = {}

    def load(self, folder: Path) -> OnnxModel:
        with self._lock:  # two threads that load the same trunk at once share one
            files = SealedFiles(folder)
            manifest = files.manifest
            for name in (TRUNK, HEAD, TRUNK_GOLDEN, HEAD_GOLDEN):
                if name not in manifest.files:
                    raise CorruptBundle(f"the manifest seals no {name}")
            trunk = self._trunk(files)
            head = self._open(Path(HEAD), data=files.read(HEAD))
            spec = manifest.spec
            _check_contract(head, {EMBEDDING: _row(spec.embedding_size), BASE_LOGITS: _row(len(spec.actions))})
            _prove(head, trunk.golden_outputs, _arrays(files, HEAD_GOLDEN), [SCORES])
            text_scorer = self._text_scorer(files, trunk) if manifest.spec.scores_text else None
            files.check_others(self._digest)
            return OnnxModel(manifest, trunk, head, text_scorer)

    def _text_scorer(self, files: SealedFiles, trunk: _Trunk) -> _TextScorer:
        manifest = files.manifest
        for name in (TEXT_SCORER, TEXT_SCORER_GOLDEN):
            if not manifest.has(name):
                raise CorruptBundle(f"the model scores text, but the manifest seals no {name}")
        assert trunk.tokenizer is not None  # a spec that scores text has a text modality
        key = tuple(manifest.sha256(name) for name in (TEXT_SCORER, TEXT_SCORER_GOLDEN))
        texts = self._texts.get(key)
        if texts is None:
            graph = self._open_small(Path(manifest.stored_name(TEXT_SCORER)), data=files.read(TEXT_SCORER))
            _, modality = manifest.spec.dynamic_action_modality
            _check_contract(graph, {TOKENS: ("tensor(int64)", list(modality.shape))})
            texts = self._texts[key] = _TextGraph(graph, _arrays(files, TEXT_SCORER_GOLDEN))
        vectors, embeddings = texts.golden_vectors, trunk.golden_outputs[EMBEDDING]
        if vectors.shape[1:] != embeddings.shape[1:]:
            raise CorruptBundle(
                f"{TEXT_SCORER}: vectors are {vectors.shape[1:]}, the embedding is {embeddings.shape[1:]}"
            )
        head = _dynamic_head(files, embeddings, vectors) if manifest.has(DYNAMIC_HEAD) else None
        return _TextScorer(texts, head, trunk.tokenizer, manifest.spec)

    def _trunk(self, files: SealedFiles) -> _Trunk:
        manifest = files.manifest
        sealed = (manifest.files.get(name) for name in (TRUNK, TRUNK_GOLDEN, TOKENIZER))
        key = tuple(None if file is None else file.sha256 for file in sealed)
        trunk = self._trunks.get(key)
        if trunk is None:
            graph = self._open(Path(TRUNK), data=files.read(TRUNK))
            trunk = _Trunk(graph, _tokenizer(files), _arrays(files, TRUNK_GOLDEN))
            self._trunks[key] = trunk
            return_free_memory()
        # A graph that was imported may have a fixed batch; its session runs any number of rows in parts.
        fixed_rows = trunk.graph.fixed_rows if manifest.spec.outputs else 0
        _check_contract(trunk.graph, _trunk_inputs(manifest.spec), fixed_rows)
        return trunk

    def _digest(self, path: Path) -> FileDigest:
        """Digest of a file that is not used here; one that has not been written to since is not read again."""
        status = path.stat()
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._digests:
            if len(self._digests) >= _CACHED_DIGESTS:
                self._digests.clear()
            self._digests[key] = digest_file(path)
        return self._digests[key]


class OnnxModel:
    """See :class:`plaudit.core.ports.runtime.ServableModel`."""

    def __init__(self, manifest: Manifest, trunk: _Trunk, head: Graph, text_scorer: _TextScorer | None) -> None:
        self.manifest = manifest
        self.digest = manifest.digest
        self.tokenizer = trunk.tokenizer
        self._trunk = trunk
        self._head = head
        self._text_scorer = text_scorer
        self._warm_heads: set[int] = set()

    def trunk(self, inputs: Arrays, outputs: Sequence[str] = (), deadline_s: float = math.inf) -> TrunkOutputs:
        embedding, base_logits, *native = self._trunk.graph.run([EMBEDDING, BASE_LOGITS, *outputs], inputs, deadline_s)
        return TrunkOutputs(embedding, base_logits, dict(zip(outputs, native, strict=True)))

    def head(self, embedding: Float, base_logits: Float) -> Float:
        return self._head.run([SCORES], {EMBEDDING: embedding, BASE_LOGITS: base_logits})[0]

    def action_vectors(self, texts: Sequence[str]) -> Float:
        return self._scorer().vectors(texts)

    def dynamic_scores(self, embedding: Float, vectors: Float, base_logits: Float) -> npt.NDArray[np.floating]:
        return self._scorer().scores(embedding, vectors, base_logits)

    def _scorer(self) -> _TextScorer:
        if self._text_scorer is None:
            raise ValueError(f"version {self.manifest.version} of {self.manifest.spec.name!r} scores no text")
        return self._text_scorer

    def warm(self, batch_sizes: Sequence[int], again: bool = False) -> None:
        spec = self.manifest.spec
        for size in batch_sizes:
            if again or size not in self._trunk.warm:
                self.trunk(self._trunk.recorded(size))
                self._trunk.warm.add(size)
            if again or size not in self._warm_heads:
                self.head(
                    np.zeros((size, spec.embedding_size), np.float32), np.zeros((size, len(spec.actions)), np.float32)
                )
                self._warm_heads.add(size)


class _Trunk:
    """A proven trunk and its tokenizer, shared by the versions that have them in common.

    Args:
        golden: recorded inputs and outputs.

    Attributes:
        golden_outputs: the recorded features that heads are proven on.
        warm: batch sizes that were run.
    """

    def __init__(self, graph: Graph, tokenizer: Tokenizer | None, golden: Arrays) -> None:
        self.graph = graph
        self.tokenizer = tokenizer
        self.warm: set[int] = set()
        outputs = {EMBEDDING, BASE_LOGITS}
        self._inputs = {name: array for name, array in golden.items() if name not in outputs}
        _prove(self.graph, self._inputs, golden, [EMBEDDING, BASE_LOGITS])
        self.golden_outputs = {name: golden[name] for name in outputs}

    def recorded(self, rows: int) -> Arrays:
        """That many recorded inputs, one after the other and again from the first."""
        return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in self._inputs.items()}


class _TextGraph:
    """A proven graph of texts → vectors, shared by the versions that have it in common."""

    def __init__(self, graph: Graph, golden: Arrays) -> None:
        self.graph = graph
        _prove(graph, {name: array for name, array in golden.items() if name != VECTORS}, golden, [VECTORS])
        self.golden_vectors: Float = golden[VECTORS]


class _TextScorer:
    """Scores of dynamic actions by one version; their base logits where it has no head for them."""

    def __init__(
        self, texts: _TextGraph, head: DynamicActionHead | None, tokenizer: Tokenizer, spec: ModelSpec
    ) -> None:
        self._texts = texts
        self._head = head
        self._tokenizer = tokenizer
        _, self._modality = spec.dynamic_action_modality

    def vectors(self, texts: Sequence[str]) -> Float:
        return self._texts.graph.run([VECTORS], {TOKENS: tokenize_all(texts, self._modality, self._tokenizer)})[0]

    def scores(self, embedding: Float, vectors: Float, base_logits: Float) -> npt.NDArray[np.floating]:
        return base_logits if self._head is None else self._head.scores(embedding, vectors, base_logits)


def _dynamic_head(files: SealedFiles, embeddings: Float, vectors: Float) -> DynamicActionHead:
    """The head, proven on the recorded contexts and texts. Raises CorruptBundle."""
    manifest, where = files.manifest, DYNAMIC_HEAD
    try:
        head = dynamic_action_head_from_bytes(files.read(DYNAMIC_HEAD))
    except CorruptState as error:
        raise CorruptBundle(f"{where}: {error}") from error
    space = head.state.space
    if (space.trunk_digest, space.text_scorer_digest) != (manifest.trunk_digest, manifest.sha256(TEXT_SCORER)):
        raise CorruptBundle(f"{where}: was learned on another trunk or text scorer than those beside it")
    found = head.scores_in(embeddings, vectors)
    recorded = _arrays(files, DYNAMIC_HEAD_GOLDEN) if manifest.has(DYNAMIC_HEAD_GOLDEN) else {SCORES: found}
    if SCORES not in recorded:
        raise CorruptBundle(f"{where}: its golden file lacks {[SCORES]}")
    _require_same(where, SCORES, found, recorded[SCORES])
    return head


def _trunk_inputs(spec: ModelSpec) -> dict[str, tuple[str, list[int]]]:
    inputs = {
        name: (_onnx_dtype(input_dtype(modality)), list(modality.shape)) for name, modality in spec.modalities.items()
    }
    return inputs if spec.all_required else inputs | {PRESENT: _row(len(spec.modalities))}


def _onnx_dtype(dtype: np.dtype[Any]) -> str:
    return f"tensor({_ONNX_DTYPES.get(dtype.name, dtype.name)})"


def _row(size: int) -> tuple[str, list[int]]:
    return "tensor(float)", [size]


def _check_contract(graph: Graph, expected: Mapping[str, tuple[str, list[int]]], fixed_rows: int = 0) -> None:
    """Raises CorruptBundle if the inputs are not the expected ones, each with a batch axis in front: of any length, or
    of ``fixed_rows``.
    """
    found = graph.inputs()
    where = graph.path.name
    if found.keys() != expected.keys():
        raise CorruptBundle(f"{where}: takes the inputs {sorted(found)}, the spec says {sorted(expected)}")
    for name, (dtype, shape) in expected.items():
        found_dtype, found_shape = found[name]
        lengths = [length if isinstance(length, int) else -1 for length in found_shape]
        if found_dtype != dtype or lengths[1:] != shape or lengths[0] != (fixed_rows or -1):
            raise CorruptBundle(
                f"{where}: input {name} is {found_dtype} {found_shape}, the spec says {dtype} [any, {str(shape)[1:]}"
            )


def _prove(graph: Graph, inputs: Arrays, expected: Arrays, outputs: Sequence[str]) -> None:
    """Raises CorruptBundle if the recorded inputs do not give the recorded outputs, in one batch and row by row."""
    where = graph.path.name
    missing = [name for name in (*graph.inputs(), *outputs) if name not in {*inputs, *expected}]
    if missing:
        raise CorruptBundle(f"{where}: its golden file lacks {missing}")
    for rows in (slice(None), slice(0, 1)):
        try:
            found = graph.run(outputs, {name: array[rows] for name, array in inputs.items()})
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise CorruptBundle(f"{where}: cannot run its golden inputs: {told_reason(error)}") from error
        for name, array in zip(outputs, found, strict=True):
            _require_same(where, name, array, expected[name][rows])


def _require_same(where: str, name: str, found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> None:
    """Raises CorruptBundle if an output is not the recorded one, or is not finite."""
    if len(wanted) == 0 or found.shape != wanted.shape:
        raise CorruptBundle(f"{where}: {name} has the shape {found.shape}, golden is {wanted.shape}")
    if not np.isfinite(found).all():
        raise CorruptBundle(f"{where}: {name} is not finite on its golden inputs")
    if not np.allclose(found, wanted, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE):
        worst = float(np.abs(found - wanted).max())
        raise CorruptBundle(f"{where}: {name} differs from its golden output by {worst:.2g}")


def _arrays(files: SealedFiles, name: str) -> dict[str, npt.NDArray[Any]]:
    try:
        arrays: dict[str, npt.NDArray[Any]] = load(files.read(name))
    except SafetensorError as error:
        raise CorruptBundle(f"{name}: {error}") from error
    return arrays


def _tokenizer(files: SealedFiles) -> Tokenizer | None:
    if not files.manifest.has(TOKENIZER):
        if any(isinstance(modality, TextModality) for modality in files.manifest.spec.modalities.values()):
            raise CorruptBundle(f"the spec has a text modality, but there is no {TOKENIZER}")
        return None
    try:
        return tokenizer_from_bytes(files.read(TOKENIZER))
    except ValueError as error:
        raise CorruptBundle(f"{TOKENIZER}: {error}") from error

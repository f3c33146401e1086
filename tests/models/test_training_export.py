"""Export: real graphs by the real exporter, opened in onnxruntime, compared with torch; new weights in an old graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

from plaudit_models.bundle import HEAD, HEAD_GOLDEN, TRUNK, TRUNK_GOLDEN, WEIGHTS, CorruptBundle, Manifest, verify
from plaudit_models.spec import (
    BASE_LOGITS,
    EMBEDDING,
    PRESENT,
    SCORES,
    AudioModality,
    ImageModality,
    ModelSpec,
    TensorModality,
    TextModality,
)
from plaudit_models.training.export import (
    ExportMismatch,
    check_parity,
    export_trunk,
    export_version,
    load_policy,
    reexport_trunk,
    save_weights,
)
from plaudit_models.training.networks.fusion import FusionConfig, FusionPolicy

# Two modalities bear the names of weights of the module, and text makes the exporter call a look-up "embedding".
SPEC = ModelSpec(
    "mix",
    {
        "summary": ImageModality(8, 6, 3),
        "back": ImageModality(9, 9, 1),
        "tags": AudioModality(8_000, 0.1),
        "case": TextModality(5),
        "sensor": TensorModality((4,)),
        "lidar": TensorModality((2, 12)),
    },
    ("cat", "dog", "bird"),
    embedding_size=8,
)
CONFIG = FusionConfig(vocabulary_size=20, width=16, layers=1, attention_heads=2)


def _policy(seed: int, *, config: FusionConfig = CONFIG) -> FusionPolicy:
    """Random weights, and batch norm statistics as training leaves them: not 0 and 1."""
    torch.manual_seed(seed)
    policy = FusionPolicy(SPEC, config)
    policy.train()(*(torch.from_numpy(array) for array in _inputs(8, seed).values()))
    return policy.eval()


def _inputs(b: int, seed: int = 0, spec: ModelSpec = SPEC) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = {
        name: rng.integers(0, 20, (b, *modality.shape))
        if modality.kind == "text"
        else rng.random((b, *modality.shape), np.float32)
        for name, modality in spec.modalities.items()
    }
    return {**inputs, PRESENT: rng.integers(0, 2, (b, len(spec.modalities))).astype(np.float32)}


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / TRUNK
    export_trunk(_policy(0), path)
    return path


def _manifest() -> Manifest:
    return Manifest(spec=SPEC, kind="pretrained", created_at_s=1.0, files={})


def test_the_graph_keeps_the_contract(trunk: Path) -> None:
    session = onnxruntime.InferenceSession(str(trunk), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == [*SPEC.modalities, PRESENT]
    assert [i.shape for i in session.get_inputs()[:-1]] == [["b", *m.shape] for m in SPEC.modalities.values()]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [(EMBEDDING, ["b", 8]), (BASE_LOGITS, ["b", 3])]


@pytest.mark.parametrize("b", [1, 2, 7])
def test_the_graph_does_what_torch_does_at_any_batch_size(trunk: Path, b: int) -> None:
    outputs = check_parity(_policy(0), trunk, _inputs(b, seed=b))
    assert outputs[EMBEDDING].shape == (b, 8)


def test_parity_refuses_other_weights(trunk: Path) -> None:
    with pytest.raises(ExportMismatch, match="embedding differs from torch by"):
        check_parity(_policy(1), trunk, _inputs(4))


def test_the_graph_holds_every_weight_under_its_own_name_and_no_trace_of_the_machine(trunk: Path) -> None:
    proto = onnx.load(trunk)
    named = {i.name for i in proto.graph.initializer}
    state = _policy(0).state_dict()
    assert {f"weights/{name}" for name in state if not name.endswith("num_batches_tracked")} == named
    assert str(Path(__file__).parents[2]).encode() not in trunk.read_bytes()


def test_new_weights_in_an_old_graph(trunk: Path, tmp_path: Path) -> None:
    trained = _policy(1)
    reexport_trunk(trunk, trained.state_dict(), tmp_path / TRUNK)
    check_parity(trained, tmp_path / TRUNK, _inputs(5))
    with pytest.raises(ExportMismatch):
        check_parity(_policy(0), tmp_path / TRUNK, _inputs(5))
    reexport_trunk(tmp_path / TRUNK, _policy(0).state_dict(), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == trunk.read_bytes()


def test_weights_that_do_not_fit_the_graph_are_refused(trunk: Path, tmp_path: Path) -> None:
    state = _policy(0).state_dict()
    missing = {name: tensor for name, tensor in state.items() if name != "norm.bias"}
    with pytest.raises(ExportMismatch, match=r"only one of .* has the weights \['norm.bias'\]"):
        reexport_trunk(trunk, missing, tmp_path / TRUNK)
    with pytest.raises(ExportMismatch, match=r"weight norm\.bias is .16. in the graph, .17. in the state dict"):
        reexport_trunk(trunk, {**state, "norm.bias": torch.zeros(17)}, tmp_path / TRUNK)
    with pytest.raises(ExportMismatch, match=r"norm\.bias"):
        reexport_trunk(trunk, {**state, "norm.bias": torch.zeros(16, dtype=torch.float64)}, tmp_path / TRUNK)
    deeper = _policy(0, config=FusionConfig(vocabulary_size=20, width=16, layers=2, attention_heads=2))
    with pytest.raises(ExportMismatch, match=r"layers\.1\."):
        reexport_trunk(trunk, deeper.state_dict(), tmp_path / TRUNK)
    assert not (tmp_path / TRUNK).exists()


def test_a_version_folder_is_sealed_and_carries_its_proof(trunk: Path, tmp_path: Path) -> None:
    policy, inputs = _policy(2), _inputs(4)
    sealed = export_version(policy, tmp_path, _manifest(), inputs, parent_trunk=trunk)
    assert verify(tmp_path) == sealed
    assert set(sealed.files) == {TRUNK, HEAD, WEIGHTS, TRUNK_GOLDEN, HEAD_GOLDEN}
    golden, scores = load_file(tmp_path / TRUNK_GOLDEN), load_file(tmp_path / HEAD_GOLDEN)
    assert set(golden) == {*SPEC.modalities, PRESENT, EMBEDDING, BASE_LOGITS}
    assert all(np.array_equal(golden[name], inputs[name]) for name in inputs)
    np.testing.assert_array_equal(scores[SCORES], golden[BASE_LOGITS])
    (tmp_path / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(CorruptBundle):
        verify(tmp_path)


def test_a_version_can_be_exported_without_a_parent(tmp_path: Path) -> None:
    """Exported anew, the graph is the one that new weights in an old graph give."""
    spec = ModelSpec("numbers", {"sensor": TensorModality((3,))}, ("no", "yes"), embedding_size=4)
    policy = FusionPolicy(spec, FusionConfig(width=8, layers=1, attention_heads=1)).eval()
    manifest = Manifest(spec=spec, kind="pretrained", created_at_s=1.0, files={})
    export_version(policy, tmp_path, manifest, _inputs(3, spec=spec))
    reexport_trunk(tmp_path / TRUNK, policy.state_dict(), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / TRUNK).read_bytes()


def test_a_version_with_wrong_weights_in_its_parent_graph_is_not_sealed(
    trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If replacing weights silently did nothing, the parity check would still stop the version."""
    monkeypatch.setattr(
        "plaudit_models.training.export.reexport_trunk",
        lambda parent, state, path: path.write_bytes(parent.read_bytes()),
    )
    with pytest.raises(ExportMismatch, match="differs from torch"):
        export_version(_policy(3), tmp_path, _manifest(), _inputs(4), parent_trunk=trunk)
    assert not (tmp_path / "manifest.json").exists()


def test_weights_come_back_as_the_same_policy(tmp_path: Path) -> None:
    policy, inputs = _policy(4), _inputs(3)
    save_weights(policy, tmp_path / WEIGHTS)
    loaded = load_policy(tmp_path, SPEC)
    assert (loaded.config, loaded.training) == (CONFIG, False)
    tensors = [torch.from_numpy(array) for array in inputs.values()]
    torch.testing.assert_close(loaded(*tensors), policy(*tensors), rtol=0, atol=0)


def test_weights_that_are_absent_or_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no torch weights"):
        load_policy(tmp_path, SPEC)
    save_weights(_policy(0), tmp_path / WEIGHTS)
    other = ModelSpec("numbers", {"sensor": TensorModality((3,))}, ("no", "yes"))
    with pytest.raises(ExportMismatch, match="not the weights of a fusion policy of model 'numbers'"):
        load_policy(tmp_path, other)

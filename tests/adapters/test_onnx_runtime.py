"""The ONNX runtime: what it computes, what it shares, and every way in which a version fails its proof."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper
from safetensors.numpy import load_file, save_file

from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit_models.bundle import (
    HEAD,
    HEAD_GOLDEN,
    MANIFEST,
    TOKENIZER,
    TRUNK,
    TRUNK_GOLDEN,
    CorruptBundle,
    FileDigest,
    digest_bytes,
    read_manifest,
    seal,
    verify,
)
from plaudit_models.spec import BASE_LOGITS, EMBEDDING, SCORES, TensorModality
from support.builders import run_graph, tiny_bundle, tiny_content, tiny_head_refresh, tiny_spec, trunk_inputs


@pytest.fixture
def runtime() -> OnnxRuntime:
    return OnnxRuntime("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_bundle(tmp_path / "v1")
    return tmp_path / "v1"


def reseal(folder: Path) -> None:
    """Make the manifest agree with the files again, so that only the proof by running can find fault."""
    seal(folder, read_manifest(folder))


def test_trunk_and_head_compute_what_the_graphs_do(runtime: OnnxRuntime, folder: Path) -> None:
    model = runtime.load(folder)
    inputs = trunk_inputs(folder, [tiny_content(0), tiny_content(1), {"question": tiny_content(2)["question"]}])
    expected = run_graph(folder / TRUNK, inputs)

    embedding, base_logits, _ = model.trunk(inputs)
    np.testing.assert_allclose(embedding, expected[EMBEDDING], rtol=1e-6)
    np.testing.assert_allclose(base_logits, expected[BASE_LOGITS], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.head(embedding, base_logits), base_logits)  # the initial head
    assert model.digest == model.manifest.digest
    assert model.tokenizer is not None


def test_versions_with_the_same_trunk_share_it(runtime: OnnxRuntime, folder: Path, tmp_path: Path) -> None:
    tiny_head_refresh(tmp_path / "v2", folder, prefer="dog")
    tiny_bundle(tmp_path / "other", seed=7)
    first, refreshed, other = (runtime.load(path) for path in (folder, tmp_path / "v2", tmp_path / "other"))

    assert first._trunk is refreshed._trunk
    assert first._trunk is not other._trunk
    features = np.zeros((1, 8), np.float32), np.zeros((1, 4), np.float32)
    np.testing.assert_array_equal(refreshed.head(*features), [[0.0, 4.0, 0.0, 0.0]])
    np.testing.assert_array_equal(first.head(*features), [[0.0, 0.0, 0.0, 0.0]])


def test_an_unused_trunk_is_released(runtime: OnnxRuntime, folder: Path) -> None:
    model = runtime.load(folder)
    assert len(runtime._trunks) == 1
    del model
    assert len(runtime._trunks) == 0


def test_warming_runs_each_batch_size_once_and_shares_the_trunks(
    runtime: OnnxRuntime, folder: Path, tmp_path: Path
) -> None:
    tiny_head_refresh(tmp_path / "v2", folder, prefer="dog")
    first, refreshed = runtime.load(folder), runtime.load(tmp_path / "v2")
    first.warm([1, 4])
    assert first._trunk.warm == {1, 4}
    refreshed.warm([1, 4])
    assert refreshed._warm_heads == {1, 4}


@pytest.mark.parametrize("name", [TRUNK, HEAD, TOKENIZER, TRUNK_GOLDEN, HEAD_GOLDEN, MANIFEST])
def test_one_changed_byte_in_any_file(runtime: OnnxRuntime, folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(CorruptBundle, match=name.replace(".", r"\.")):
        runtime.load(folder)


def test_a_file_changed_after_it_was_read_is_read_again(runtime: OnnxRuntime, folder: Path) -> None:
    runtime.load(folder)
    with (folder / TOKENIZER).open("a") as file:
        file.write(" ")
    with pytest.raises(CorruptBundle, match=TOKENIZER):
        runtime.load(folder)


@pytest.mark.parametrize("name", [TRUNK, HEAD, TOKENIZER, TRUNK_GOLDEN, HEAD_GOLDEN])
def test_a_file_changed_under_its_old_time_is_found(runtime: OnnxRuntime, folder: Path, name: str) -> None:
    """Changed in place, of the same size, and its time put back: what is used is digested, whatever its time says."""
    runtime.load(folder)
    status = (folder / name).stat()
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    with (folder / name).open("r+b") as file:
        file.write(data)
    os.utime(folder / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CorruptBundle, match=f"{name}: .* is not the sealed"):
        OnnxRuntime("cpu").load(folder) if name in (TRUNK, TOKENIZER, TRUNK_GOLDEN) else runtime.load(folder)


def test_a_file_exchanged_between_check_and_use_is_not_used(
    runtime: OnnxRuntime, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is replaced as soon as it has been digested: the session has the one that was digested."""
    tiny_head_refresh(tmp_path / "v2", folder, prefer="dog")
    sealed, other = ((path / HEAD).read_bytes() for path in (folder, tmp_path / "v2"))

    def exchange(data: bytes) -> FileDigest:
        if data == sealed:
            (folder / HEAD).write_bytes(other)
        return digest_bytes(data)

    monkeypatch.setattr("plaudit.adapters.runtime.sealed_files.digest_bytes", exchange)
    model = runtime.load(folder)
    features = np.zeros((1, 8), np.float32), np.zeros((1, 4), np.float32)
    np.testing.assert_array_equal(model.head(*features), [[0.0, 0.0, 0.0, 0.0]])


def test_errors_do_not_say_where_the_folder_is(runtime: OnnxRuntime, folder: Path) -> None:
    """They are sent to clients, as the reason why a version is not made live."""
    for name in (TRUNK, HEAD, TOKENIZER, TRUNK_GOLDEN, HEAD_GOLDEN, MANIFEST):
        whole = (folder / name).read_bytes()
        for broken in (b"", whole[:-2], None):
            (folder / name).unlink()
            if broken is not None:
                (folder / name).write_bytes(broken)
            with pytest.raises(CorruptBundle, match=name) as refused:
                runtime.load(folder)
            assert str(folder.parent) not in str(refused.value)
            (folder / name).write_bytes(whole)
    runtime.load(folder)


def test_a_changed_trunk_is_found_though_the_same_trunk_is_already_loaded(
    runtime: OnnxRuntime, folder: Path, tmp_path: Path
) -> None:
    kept = runtime.load(folder)
    tiny_head_refresh(tmp_path / "v2", folder, prefer="dog")
    data = bytearray((tmp_path / "v2" / TRUNK).read_bytes())
    data[-1] ^= 1
    (tmp_path / "v2" / TRUNK).write_bytes(bytes(data))
    with pytest.raises(CorruptBundle, match="trunk"):
        runtime.load(tmp_path / "v2")
    assert kept.manifest == verify(folder)


@pytest.mark.parametrize("name", [TRUNK, HEAD, TRUNK_GOLDEN, HEAD_GOLDEN, TOKENIZER])
def test_a_file_that_is_not_sealed(runtime: OnnxRuntime, folder: Path, name: str) -> None:
    (folder / name).unlink()
    reseal(folder)
    with pytest.raises(CorruptBundle, match=name):
        runtime.load(folder)


def test_a_folder_that_is_not_there(runtime: OnnxRuntime, tmp_path: Path) -> None:
    with pytest.raises(CorruptBundle, match="manifest"):
        runtime.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [TRUNK, HEAD])
def test_a_file_that_is_no_graph(runtime: OnnxRuntime, folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"not a graph")
    reseal(folder)
    with pytest.raises(CorruptBundle, match=f"{name}: .*cannot load"):
        runtime.load(folder)


def nudge(name: str, output: str, value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        arrays = {key: array.copy() for key, array in load_file(folder / name).items()}
        arrays[output][0, 0] += value
        save_file(arrays, folder / name)

    return change


def drop(name: str, output: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        arrays = load_file(folder / name)
        del arrays[output]
        save_file(arrays, folder / name)

    return change


def no_rows(folder: Path) -> None:
    for name in (TRUNK_GOLDEN, HEAD_GOLDEN):
        save_file({key: array[:0] for key, array in load_file(folder / name).items()}, folder / name)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (nudge(TRUNK_GOLDEN, EMBEDDING, 0.01), "embedding differs"),
        (nudge(TRUNK_GOLDEN, BASE_LOGITS, 0.01), "base_logits differs"),
        (nudge(HEAD_GOLDEN, SCORES, 0.01), "scores differs"),
        (drop(HEAD_GOLDEN, SCORES), "lacks"),
        (drop(TRUNK_GOLDEN, "image"), "lacks"),
        (no_rows, "shape"),
    ],
)
def test_outputs_that_are_not_golden(
    runtime: OnnxRuntime, folder: Path, change: Callable[[Path], None], complaint: str
) -> None:
    change(folder)
    reseal(folder)
    with pytest.raises(CorruptBundle, match=complaint):
        runtime.load(folder)


def test_golden_outputs_within_tolerance_pass(runtime: OnnxRuntime, folder: Path) -> None:
    nudge(TRUNK_GOLDEN, EMBEDDING, 5e-5)(folder)
    reseal(folder)
    runtime.load(folder)


def test_inputs_that_are_not_the_specs(runtime: OnnxRuntime, folder: Path) -> None:
    spec = tiny_spec()
    seal(
        folder,
        replace(
            read_manifest(folder), spec=replace(spec, modalities={**spec.modalities, "more": TensorModality((2,))})
        ),
    )
    with pytest.raises(CorruptBundle, match=r"the spec says .*more"):
        runtime.load(folder)


def write_head(
    folder: Path,
    *nodes: NodeProto,
    constant: TensorProto | None = None,
    batch: int | str = "b",
    embedding_size: int = 8,
) -> None:
    """Another head of four actions, with the version's golden inputs."""
    graph = helper.make_graph(
        nodes,
        "head",
        [
            helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, [batch, embedding_size]),
            helper.make_tensor_value_info(BASE_LOGITS, TensorProto.FLOAT, [batch, 4]),
        ],
        [helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, [batch, 4])],
        [] if constant is None else [constant],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / HEAD)


@pytest.mark.parametrize(("batch", "embedding_size"), [(3, 8), ("b", 9)])
def test_an_input_of_another_shape_or_a_fixed_batch(
    runtime: OnnxRuntime, folder: Path, batch: int | str, embedding_size: int
) -> None:
    """A head of a fixed batch of 3, and one whose embedding has 9 entries instead of 8."""
    identity = helper.make_node("Identity", [BASE_LOGITS], [SCORES])
    write_head(folder, identity, batch=batch, embedding_size=embedding_size)
    reseal(folder)
    with pytest.raises(CorruptBundle, match="embedding is tensor"):
        runtime.load(folder)


def test_a_graph_that_mixes_the_rows_of_a_batch(runtime: OnnxRuntime, folder: Path) -> None:
    """scores = base_logits − their mean over the batch: right for the golden batch, wrong for its first row alone."""
    write_head(
        folder,
        helper.make_node("ReduceMean", [BASE_LOGITS, "axis"], ["mean"]),
        helper.make_node("Sub", [BASE_LOGITS, "mean"], [SCORES]),
        constant=helper.make_tensor("axis", TensorProto.INT64, [1], [0]),
    )
    save_file(run_graph(folder / HEAD, load_file(folder / TRUNK_GOLDEN)), folder / HEAD_GOLDEN)
    reseal(folder)
    with pytest.raises(CorruptBundle, match="scores differs"):
        runtime.load(folder)


def test_outputs_that_are_not_finite(runtime: OnnxRuntime, folder: Path) -> None:
    write_head(
        folder,
        helper.make_node("Div", [BASE_LOGITS, "zero"], [SCORES]),
        constant=helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]),
    )
    save_file(run_graph(folder / HEAD, load_file(folder / TRUNK_GOLDEN)), folder / HEAD_GOLDEN)
    reseal(folder)
    with pytest.raises(CorruptBundle, match="not finite"):
        runtime.load(folder)


def test_a_copy_elsewhere_is_as_good(runtime: OnnxRuntime, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert runtime.load(tmp_path / "copy").digest == runtime.load(folder).digest

"""A data folder becomes pools, an index and labels; a wrong one names the file, line, column and value."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from PIL import Image

from plaudit_models.data.config import DEFAULT_DATA, DataConfig
from plaudit_models.data.errors import InvalidData
from plaudit_models.data.items import ItemReader
from plaudit_models.data.labelled import LabelledData, RowNumbers
from plaudit_models.data.loader import StreamedData, block_order, load_data_folder, tokenizer_for
from plaudit_models.data.rows import read_rows
from plaudit_models.data.splits import Split
from plaudit_models.spec import AudioModality, ImageModality, ModelSpec, TensorModality, TextModality

SPEC = ModelSpec(
    "pets",
    {
        "photo": ImageModality(height=2, width=2, channels=1),
        "noise": AudioModality(sample_rate_hz=8_000, max_duration_s=0.001),
        "note": TextModality(max_tokens=6),
        "weight": TensorModality(shape=(1,)),
    },
    ("cat", "dog"),
)

MANIFEST = """\
split,action,group,photo,noise,note,weight,photo_label
train,cat,city,a.png,meow.wav,"soft, small",w.npy,tabby
train,dog,city,b.png,,soft and loud,,
val,dog,farm,b.png,meow.wav,,,terrier
train,cat,,a.png,,,w.npy,persian
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("L", (2, 2), 0).save(tmp_path / "a.png")
    Image.new("L", (2, 2), 255).save(tmp_path / "b.png")
    soundfile.write(tmp_path / "meow.wav", np.full(8, 0.5), 8_000)
    np.save(tmp_path / "w.npy", np.array([4.5], np.float32))
    (tmp_path / "manifest.csv").write_text(MANIFEST, encoding="utf-8")
    return tmp_path


def load(folder: Path, split: Split = "train") -> LabelledData:
    return load_data_folder(folder, SPEC, split, tokenizer_for(read_rows(folder, SPEC, DEFAULT_DATA)))


def test_each_distinct_item_is_decoded_once_and_rows_keep_their_order(folder: Path) -> None:
    """Rows 1, 2 and 4 are train. Photos: a, b, a. Sounds: meow, none, none. Notes: two, then none."""
    data = load(folder)
    assert len(data) == 3
    assert data.index.tolist() == [[0, 0, 0, 0], [1, -1, 1, -1], [0, -1, -1, 0]]
    assert data.index.dtype == np.int64
    assert {name: pool.shape for name, pool in data.pools.items()} == {
        "photo": (2, 1, 2, 2),
        "noise": (1, 8),
        "note": (2, 6),
        "weight": (1, 1),
    }
    assert data.pools["photo"][:, 0, 0, 0].tolist() == [0.0, 1.0]
    assert data.pools["noise"][0, 0] == pytest.approx(0.5, abs=1e-3)
    assert data.pools["note"].dtype == np.int64
    assert data.pools["weight"].tolist() == [[4.5]]
    assert data.action.tolist() == [0, 1, 0]
    assert data.group == ["city", "city", ""]


def test_tower_labels_are_numbered_alike_in_every_split(folder: Path) -> None:
    """Sorted over all splits: persian 0, tabby 1, terrier 2."""
    train, val = load(folder), load(folder, "val")
    assert train.tower_classes == val.tower_classes == {"photo": ("persian", "tabby", "terrier")}
    assert train.tower_labels["photo"].tolist() == [1, -1, 0]
    assert val.tower_labels["photo"].tolist() == [2]


def test_integer_labels_are_in_numeric_order(folder: Path) -> None:
    text = MANIFEST.replace("tabby", "10").replace("terrier", "0").replace("persian", "9")
    (folder / "manifest.csv").write_text(text, encoding="utf-8")
    assert load(folder).tower_classes == {"photo": ("0", "9", "10")}


def test_group_and_labels_are_optional_and_a_split_may_lack_a_modality(folder: Path) -> None:
    (folder / "manifest.csv").write_text("action,split,photo,noise,note,weight\ncat,train,,,hello,\n")
    data = load(folder)
    assert data.group == [""]
    assert data.tower_labels == {}
    assert data.pools["photo"].shape == (0, 1, 2, 2)
    assert data.index.tolist() == [[-1, -1, 0, -1]]


def test_the_tokenizer_knows_training_texts_only(folder: Path) -> None:
    (folder / "manifest.csv").write_text(
        "split,action,photo,noise,note,weight\n" + "train,cat,,,purring,\n" * 2 + "val,cat,,,barking,\n"
    )
    tokenizer = tokenizer_for(read_rows(folder, SPEC, DEFAULT_DATA))
    assert tokenizer is not None
    assert len(tokenizer.encode("purring").ids) == 1
    assert len(tokenizer.encode("barking").ids) > 3


def test_a_spec_without_text_needs_no_tokenizer(folder: Path) -> None:
    spec = ModelSpec("pets", {"photo": SPEC.modalities["photo"]}, ("cat", "dog"))
    (folder / "manifest.csv").write_text("split,action,photo\ntest,dog,b.png\n")
    assert tokenizer_for(read_rows(folder, spec, DEFAULT_DATA)) is None
    assert load_data_folder(folder, spec, "test", None).action.tolist() == [1]


def test_byte_order_mark_and_windows_line_ends_are_fine(folder: Path) -> None:
    (folder / "manifest.csv").write_bytes(b"\xef\xbb\xbf" + MANIFEST.replace("\n", "\r\n").encode())
    assert len(load(folder)) == 3


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("train,cat,city", "trian,cat,city", r"line 2, column split: 'trian' is not one of \['train', 'val', 'test'\]"),
        ("train,dog", "train,cow", r"line 3, column action: 'cow' is not an action of 'pets'; .*\['cat', 'dog'\]"),
        ("b.png,,soft", "c.png,,soft", "line 3, column photo: 'c.png': .*No such file"),
        ("meow.wav,\"soft", "a.png,\"soft", r"line 2, column noise: 'a.png': .*is a PNG image, not a sound"),
        ("soft and loud", " ", "line 3, column note: ' ': .*blank"),
        (",w.npy,tabby", ",a.png,tabby", "line 2, column weight: 'a.png': "),
        ('"soft, small"', "soft, small", "line 2: 9 cells, the header has 8; quote cells that contain commas"),
        ("city,b.png,,soft and loud", "city,,,", "line 3: every modality of .* is empty"),
        ("photo,noise", "foto,noise", "no column 'photo' among"),
        ("group", "gruop", "unknown column 'gruop'; needed are .*, possible are .*'group'"),
        ("split,action,group", "split,action,split", "column 'split' appears 2 times"),
        ('"soft, small"', '"soft, small', "cannot be read"),
        ("train,", "val,", "no row with split 'train' has text in"),
    ],
)  # fmt: skip
def test_a_wrong_manifest_says_where_and_why(folder: Path, old: str, new: str, problem: str) -> None:
    assert old in MANIFEST
    (folder / "manifest.csv").write_text(MANIFEST.replace(old, new), encoding="utf-8")
    with pytest.raises(InvalidData, match=r"manifest\.csv.*" + problem):
        load(folder)


def test_a_tensor_of_the_wrong_shape_is_named(folder: Path) -> None:
    np.save(folder / "w.npy", np.zeros(3, np.float32))
    with pytest.raises(InvalidData, match=r"line 2, column weight: 'w.npy': takes the shape \[1\], got a tensor of"):
        load(folder)


def test_a_missing_split_is_named(folder: Path) -> None:
    with pytest.raises(InvalidData, match=r"no row has split 'test'; the splits there are \['train', 'val'\]"):
        load(folder, "test")


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00"], ids=["missing", "empty", "not UTF-8"])
def test_an_unreadable_manifest_is_named(folder: Path, content: bytes | None) -> None:
    (folder / "manifest.csv").unlink()
    if content is not None:
        (folder / "manifest.csv").write_bytes(content)
    with pytest.raises(InvalidData, match=r"manifest\.csv"):
        load(folder)


# --- reading ahead ----------------------------------------------------------------------------------------------------

NUMBERS = ModelSpec("numbers", {"x": TensorModality((1,)), "y": TensorModality((1,))}, ("a", "b"))


def numbers(folder: Path, n: int = 103, **config: Any) -> StreamedData:
    """Row i has x = i // 2 and no y where i is a multiple of 3."""
    lines = [f"train,{'ab'[i % 2]},{i // 2},{'' if i % 3 == 0 else i}" for i in range(n)]
    (folder / "manifest.csv").write_text("\n".join(["split,action,x,y", *lines]))
    return StreamedData(read_rows(folder, NUMBERS, DataConfig(**config)), "train", None)


def seen(data: StreamedData, order: Iterable[RowNumbers], steps: int) -> list[list[tuple[float, float]]]:
    """Values of x and y of every row of some blocks, as training gets them."""
    found = []
    for block in islice(data.prepared_by(lambda name, items: items * 2.0)(order), steps):
        pools = [np.append(block.pools[name][:, 0], np.nan) for name in ("x", "y")]
        found.append([(float(pools[0][x]), float(pools[1][y])) for x, y in block.index])
    return found


def test_the_order_is_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    one, many = (seen(numbers(tmp_path, workers=workers), block_order(103, 8, 5), 40) for workers in (1, 7))
    np.testing.assert_array_equal(np.concatenate(one), np.concatenate(many))
    rows = np.concatenate(list(islice(block_order(103, 8, 5), 40)))
    assert np.concatenate(one)[:, 0].tolist() == [2.0 * (row // 2) for row in rows]
    assert np.isnan(np.concatenate(one)[:, 1]).tolist() == [row % 3 == 0 for row in rows]


@pytest.mark.parametrize("start", [1, 12, 13, 30])
def test_a_run_goes_on_in_the_middle_of_a_pass(start: int) -> None:
    whole = list(islice(block_order(103, 8, 5), 45))
    for expected, block in zip(whole[start:], block_order(103, 8, 5, start=start), strict=False):
        np.testing.assert_array_equal(expected, block)


def test_a_pass_has_every_row_once_and_passes_differ() -> None:
    """103 rows in blocks of 8: the last has 7 rows, more than half a block; of 8 and 3 the 3 are left out."""
    first, second = (list(islice(block_order(103, 8, 5, start=start), 13)) for start in (0, 13))
    assert sorted(np.concatenate(first).tolist()) == sorted(np.concatenate(second).tolist()) == list(range(103))
    assert [block[0] for block in first] != [block[0] for block in second]
    assert {len(block) for block in islice(block_order(11, 8, 0), 5)} == {8}
    assert next(block_order(3, 8, 0)).tolist() == [0, 1, 2]


def test_no_cache_gives_the_same_rows_and_a_cache_reads_each_item_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()
    decoded = ItemReader.decoded

    def counted(self: ItemReader, cell: str, name: str) -> npt.NDArray[Any]:
        if name == "x":
            reads[cell] += 1
        return decoded(self, cell, name)

    monkeypatch.setattr(ItemReader, "decoded", counted)
    cached = seen(numbers(tmp_path, workers=1), block_order(103, 8, 5), 39)
    assert max(reads.values()) == 1
    reads.clear()
    fresh = seen(numbers(tmp_path, workers=1, cache_bytes=0), block_order(103, 8, 5), 39)
    assert min(reads.values()) == 3
    np.testing.assert_array_equal(np.concatenate(cached), np.concatenate(fresh))


def test_an_item_that_breaks_while_training_is_told_with_its_place(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(1, np.float32))
    (tmp_path / "manifest.csv").write_text("split,action,x,y\ntrain,a,1,2\ntrain,b,x.npy,3\ntrain,b,y.npy,3\n")
    data = StreamedData(read_rows(tmp_path, NUMBERS, DataConfig()), "train", None)
    batches = data.prepared_by(lambda name, items: items)([np.array([0, 1]), np.array([2])])
    assert len(next(batches)) == 2
    with pytest.raises(InvalidData, match=r"line 4, column x: 'y\.npy': cannot be opened"):
        next(batches)


def test_no_thread_is_left_when_training_ends_early(tmp_path: Path) -> None:
    batches = numbers(tmp_path).prepared_by(lambda name, items: items)(block_order(103, 8, 5))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert [each.name for each in threading.enumerate() if each.name.startswith("loader")] == []


def test_weights_and_slices_come_with_the_rows(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(
        "split,action,x,y,weight,slice,group\ntrain,a,1,2,0.5,left,p1\ntrain,b,1,2,,right,p2\n"
    )
    data = StreamedData(read_rows(tmp_path, NUMBERS, DataConfig()), "train", None).decoded()
    assert data.weight is not None
    assert (data.weight.tolist(), data.group) == ([0.5, 1.0], ["left", "right"])

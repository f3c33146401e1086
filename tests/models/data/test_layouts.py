"""Folders as strangers make them become the same rows: CSV, JSON lines, Parquet, Croissant, imagefolders."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plaudit_models.data.config import DataConfig
from plaudit_models.data.errors import InvalidData
from plaudit_models.data.loader import StreamedData, load_data_folder
from plaudit_models.data.rows import Rows, read_rows
from plaudit_models.spec import ImageModality, ModelSpec, TensorModality, TextModality

PHOTO = ModelSpec("pets", {"image": ImageModality(height=2, width=2, channels=1)}, ("cat", "dog"))
NOTE = ModelSpec("pets", {"note": TextModality(4)}, ("cat", "dog"))
RECORDS = [("train", "cat", "purr"), ("val", "dog", "woof, woof"), ("test", "cat", "مياو 🐈")]
ANY = DataConfig(ignore=["*"])


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (2, 2), value).save(file, "PNG")
    return file.getvalue()


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(folder: Path, spec: ModelSpec = PHOTO, **config: Any) -> Rows:
    rows = read_rows(folder, spec, DataConfig(**{"ignore": ["*"], **config}))
    rows.check()
    return rows


def brightness(folder: Path, rows: Rows) -> list[float]:
    """First pixel of every item, split by split."""
    found: list[float] = []
    for split in ("train", "val", "test"):
        if split in rows.split:
            data = StreamedData(rows, split, None).decoded()
            found += data.pools["image"][data.index[:, 0], 0, 0, 0].tolist()
    return found


def write_table(folder: Path, suffix: str) -> None:
    columns = {"split": [r[0] for r in RECORDS], "action": [r[1] for r in RECORDS], "note": [r[2] for r in RECORDS]}
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns), folder / "manifest.parquet")
    elif suffix == ".jsonl":
        records = [dict(zip(columns, record, strict=True)) for record in RECORDS]
        put(folder / "manifest.jsonl", "\n".join(map(json.dumps, records)))
    else:
        mark = "\t" if suffix == ".tsv" else ","
        lines = [mark.join(columns), *(mark.join(f'"{cell}"' for cell in record) for record in RECORDS)]
        put(folder / f"manifest{suffix}", "\n".join(lines))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_manifest_may_be_of_any_format(tmp_path: Path, suffix: str) -> None:
    write_table(tmp_path, suffix)
    rows = read(tmp_path, NOTE)
    assert list(rows.split) == ["train", "val", "test"]
    assert list(rows.items["note"]) == [record[2] for record in RECORDS]
    assert [target.best for target in rows.target if target] == [0, 1, 0]
    assert rows.table.place(1).endswith({".parquet": ", row 1", ".jsonl": ", line 2"}.get(suffix, ", line 3"))


def test_an_image_folder_with_metadata(tmp_path: Path) -> None:
    """A `metadata.csv` for each split, as `datasets` documents it."""
    for split, value, label in (("train", 0, "cat"), ("validation", 102, "dog"), ("test", 255, "cat")):
        put(tmp_path / split / "0001.png", png(value))
        put(tmp_path / split / "metadata.csv", f"file_name,label\n0001.png,{label}\n")
    rows = read(tmp_path)
    assert list(rows.split) == ["test", "train", "val"]
    assert brightness(tmp_path, rows) == pytest.approx([0.0, 0.4, 1.0])


def test_class_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number, label in enumerate(("cat", "dog")):
            put(tmp_path / split / label / f"{number}.png", png(255 * number))
    rows = read(tmp_path)
    assert sorted(rows.items["image"]) == ["test/cat/0.png", "test/dog/1.png", "train/cat/0.png", "train/dog/1.png"]
    assert [PHOTO.actions[t.best] for t in rows.target if t] == ["cat", "dog", "cat", "dog"]
    assert sorted(rows.split) == ["test", "test", "train", "val"]
    assert rows.made_splits == "there are train and test and no val: val is made of train by content"


def test_parquet_of_datasets_keeps_its_bytes_inside_and_names_its_classes(tmp_path: Path) -> None:
    """Shards, `Image` as a struct of bytes and path, `ClassLabel` as a number whose names are in the metadata."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {"image": {"_type": "Image"}, "label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema(
        [("image", image), ("label", pyarrow.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    (tmp_path / "data").mkdir()
    put(tmp_path / "outside.png", png(51))
    for shard, split in enumerate(("train", "train", "validation")):
        rows: list[dict[str, Any]] = [{"bytes": png(20 * i), "path": None} for i in range(3)]
        if shard == 1:
            rows[2] = {"bytes": None, "path": "outside.png"}
        table = pyarrow.table({"image": rows, "label": [0, 1, 1]}, schema=schema)
        parquet.write_table(table, tmp_path / "data" / f"{split}-0000{shard}-of-00003.parquet", row_group_size=2)
    found = read(tmp_path)
    assert [PHOTO.actions[t.best] for t in found.target if t] == ["dog", "cat", "cat"] * 3
    assert found.items["image"][4] == "data/train-00001-of-00003.parquet#image[1]"
    values = [0.0, 20.0, 40.0, 0.0, 20.0, 51.0, 0.0, 20.0, 40.0]
    assert brightness(tmp_path, found) == pytest.approx([value / 255 for value in values])


def croissant(folder: Path, **distribution: str) -> None:
    described = {
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "distribution": [{"@type": "cr:FileObject", "@id": "rows", "encodingFormat": "text/csv", **distribution}],
        "recordSet": [
            {
                "@id": "default",
                "field": [
                    {"@id": f"default/{name}", "source": {"fileObject": {"@id": "rows"}, "extract": {"column": column}}}
                    for name, column in (("split", "part"), ("action", "animal"), ("note", "heard"))
                ],
            }
        ],
    }
    put(folder / "croissant.json", json.dumps(described))


def test_croissant_names_the_columns(tmp_path: Path) -> None:
    file = put(tmp_path / "rows.csv", "part,animal,heard\ntrain,cat,purr\nval,dog,woof\n")
    croissant(tmp_path, contentUrl="rows.csv", sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    rows = read(tmp_path, NOTE)
    assert (list(rows.items["note"]), list(rows.split)) == (["purr", "woof"], ["train", "val"])


@pytest.mark.parametrize(
    ("distribution", "problem"),
    [
        ({"contentUrl": "https://example.org/rows.csv"}, "is an address; download it"),
        ({"contentUrl": "../rows.csv"}, "leads out of"),
        ({"contentUrl": "none.csv"}, "is not a file of"),
        ({"contentUrl": "rows.csv", "sha256": "0" * 64}, "has the SHA-256"),
    ],
)
def test_croissant_that_describes_something_else(tmp_path: Path, distribution: dict[str, str], problem: str) -> None:
    put(tmp_path / "set/rows.csv", "part,animal,heard\ntrain,cat,purr\n")
    croissant(tmp_path / "set", **distribution)
    with pytest.raises(InvalidData, match=problem):
        read(tmp_path / "set", NOTE)


@pytest.mark.parametrize(
    ("files", "config", "problem"),
    [
        ({}, {}, "there is none, and the folder is no other layout either"),
        ({"manifest.csv": "a\n", "manifest.jsonl": "{}"}, {}, "has manifest.csv and manifest.jsonl; say which"),
        ({"manifest.csv": "split;action;note\n"}, {}, "its only column is .*; separate the cells with commas"),
        ({"manifest.csv": "split,action,note\n"}, {}, "has no rows, only the header"),
        ({"manifest.jsonl": '{"note": 1}\n[]\n'}, {}, "line 2: is a list, and each line is one object"),
        ({"manifest.jsonl": '{"note": 1}\n{"note": \n'}, {}, "line 2: is not JSON"),
        ({"manifest.parquet": "PAR1"}, {}, "is not a Parquet file that can be read"),
        ({"manifest.csv": "action,note\ncat,\xff\n".encode("utf-16")}, {}, "save it as UTF-8"),
        ({"a.csv": ""}, {"manifest": "../a.csv"}, "data.manifest: '../a.csv' leads out of"),
        ({"a.xlsx": ""}, {"manifest": "a.xlsx"}, "is none of .csv, .tsv"),
        ({"metadata.csv": "name,label\n"}, {}, "no column 'file_name' among"),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(
    tmp_path: Path, files: dict[str, str | bytes], config: dict[str, str], problem: str
) -> None:
    for name, content in files.items():
        put(tmp_path / name, content)
    with pytest.raises(InvalidData, match=problem):
        read(tmp_path, NOTE, **config)


def test_templates_and_several_columns(tmp_path: Path) -> None:
    """MNIST's folder has an index and no path; laboratory values stand in columns of their own."""
    np.savez(tmp_path / "digits.npz", x_train=np.full((2, 2, 2), 51, np.uint8), x_val=np.full((1, 2, 2), 255, np.uint8))
    put(tmp_path / "manifest.csv", "split,index,label,crp,ldh\ntrain,1,cat,1.5,\nval,0,dog,,2\n")
    spec = ModelSpec("lab", {**PHOTO.modalities, "values": TensorModality((2,), takes_nan=True)}, PHOTO.actions)
    columns = {"image": "digits.npz#x_{split}[{index}]", "values": ["crp", "ldh"]}
    config = DataConfig(columns=columns, ignore=["*"])
    train = load_data_folder(tmp_path, spec, "train", None, config)
    assert train.pools["image"][0, 0, 0, 0] == pytest.approx(0.2)
    np.testing.assert_array_equal(train.pools["values"], [[1.5, np.nan]])
    rows = read_rows(tmp_path, spec, config)
    assert rows.items["image"] == ["digits.npz#x_train[1]", "digits.npz#x_val[0]"]
    assert rows.sources == {"image": ["split", "index"], "values": ["crp", "ldh"]}


def test_splits_are_made_by_group_and_stay_when_rows_are_added(tmp_path: Path) -> None:
    lines = [f"cat,hello {i},p{i // 4}" for i in range(400)]
    put(tmp_path / "manifest.csv", "\n".join(["action,note,group", *lines]))
    rows = read(tmp_path, NOTE)
    of = dict(zip(rows.group, rows.split, strict=True))
    assert [of[group] for group in rows.group] == list(rows.split)
    assert {split: list(of.values()).count(split) for split in ("train", "val", "test")} == {
        "train": 77, "val": 13, "test": 10,
    }  # fmt: skip
    put(tmp_path / "manifest.csv", "\n".join(["action,note,group", "dog,new,p1000", *lines]))
    assert list(read(tmp_path, NOTE).split)[1:] == list(rows.split)


def test_rows_without_a_group_are_split_by_content(tmp_path: Path) -> None:
    put(tmp_path / "manifest.csv", "\n".join(["action,note", *(f"cat,hello {i % 50}" for i in range(100))]))
    rows = read(tmp_path, NOTE)
    assert list(rows.split[:50]) == list(rows.split[50:])
    assert set(rows.split) == {"train", "val", "test"}
    assert rows.made_splits == "there is no column 'split': splits are made by content"


def test_columns_of_others_must_be_named_or_left_out(tmp_path: Path) -> None:
    put(tmp_path / "manifest.csv", "split,action,note,breed\ntrain,cat,purr,siamese\n")
    with pytest.raises(InvalidData, match=r"unknown column 'breed'; .*data.ignore"):
        read(tmp_path, NOTE, ignore=())
    assert len(read(tmp_path, NOTE, ignore=["breed"])) == 1


@pytest.mark.parametrize("index", ["", "Unnamed: 0", "__index_level_0__"])
def test_the_row_labels_of_pandas_are_no_column(tmp_path: Path, index: str) -> None:
    put(tmp_path / "manifest.csv", f"{index},split,action,note\n0,train,cat,purr\n")
    assert len(read(tmp_path, NOTE, ignore=())) == 1


def test_real_sets_are_read(real_data: Path) -> None:
    """Archives, arrays and templates of the folders beside the repository."""
    sound = ModelSpec(
        "s",
        {"radar": TensorModality((16, 4), takes_nan=True), "motion": TensorModality((20, 5))},
        ("accelerate", "hold", "slow_down"),
    )
    rows = read_rows(real_data / "driving_radar", sound, DataConfig(ignore=["*"], group="block"))
    assert (rows.problem_count, len(rows)) == (0, 450)
    data = StreamedData(rows, "test", None).decoded()
    assert data.pools["radar"].shape == (120, 16, 4)
    pets = ModelSpec("p", {"image": ImageModality(32, 32)}, ("cat", "dog"))
    columns = {"image": "images.zip#{file}"}
    assert len(load_data_folder(real_data / "pets", pets, "val", None, DataConfig(columns=columns, ignore=["*"]))) == 42
    digits = ModelSpec("d", {"image": ImageModality(28, 28, channels=1)}, tuple("0123456789"))
    config = DataConfig(columns={"image": "mnist.npz#x_{split}[{index}]"}, ignore=["*"])
    val = load_data_folder(real_data / "mnist", digits, "val", None, config)
    with np.load(real_data / "mnist/mnist.npz") as arrays:
        pictures = val.pools["image"][val.index[:, 0], 0]
        np.testing.assert_allclose(pictures * 255, arrays["x_val"], atol=1e-4)

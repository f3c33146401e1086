"""Every wrong cell and file is refused with file, line, column and value; nothing outside the folder is read."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from plaudit_models.data.config import DataConfig
from plaudit_models.data.errors import InvalidData, UnusableItem
from plaudit_models.data.files import DataFiles
from plaudit_models.data.loader import StreamedData, load_data_folder, tokenizer_for
from plaudit_models.data.rows import read_rows
from plaudit_models.data.targets import TargetReader, target_arrays
from plaudit_models.spec import AudioModality, ImageModality, ModelSpec, TensorModality, TextModality

SPEC = ModelSpec(
    "ward",
    {
        "photo": ImageModality(height=4, width=2, channels=1),
        "noise": AudioModality(sample_rate_hz=8_000, max_duration_s=0.01),
        "note": TextModality(max_tokens=6),
        "values": TensorModality(shape=(2,)),
    },
    ("cat", "dog"),
)
HEADER = "split,action,photo,noise,note,values\n"


def load(folder: Path, row: str, **config: Any) -> dict[str, np.ndarray[Any, Any]]:
    (folder / "manifest.csv").write_text(f"{HEADER}train,cat,,,hello,\n{row}\n", encoding="utf-8")
    rows = read_rows(folder, SPEC, DataConfig(**config))
    rows.check()
    return dict(load_data_folder(folder, SPEC, "train", tokenizer_for(rows), DataConfig(**config)).pools)


def wav(path: Path, rate_hz: int, seconds: float) -> None:
    soundfile.write(path, np.full(round(rate_hz * seconds), 0.5, np.float32), rate_hz)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "data"
    inner.mkdir()
    Image.new("L", (2, 4), 255).save(inner / "white.png")
    (tmp_path / "secret.png").write_bytes((inner / "white.png").read_bytes())
    wav(inner / "tone.wav", 8_000, 0.01)
    (inner / "corrupt.mp3").write_bytes(b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(range(200)))
    (inner / "cut.wav").write_bytes((inner / "tone.wav").read_bytes()[:60])
    np.save(inner / "nan.npy", np.array([1.0, np.nan], np.float32))
    np.save(inner / "inf.npy", np.array([np.inf, 1.0], np.float32))
    np.save(inner / "objects.npy", np.array([{}, {}], object), allow_pickle=True)
    (inner / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(inner / "pipe.png")
    return inner


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("train,cow,,,hello,", r"line 3, column action: 'cow' is not an action of 'ward'; .*add it to model.actions"),
        ("train,,,,hello,", "line 3, column action: '' is empty; every row needs a target"),
        ("train,cat,none.png,,,", "line 3, column photo: 'none.png': cannot be opened .*No such file"),
        ("train,cat,../secret.png,,,", "line 3, column photo: .*leads out of the folder"),
        ("train,cat,link.png,,,", "line 3, column photo: 'link.png': leads out of the folder"),
        ("train,cat,/etc/passwd,,,", "line 3, column photo: .*is an absolute path"),
        ("train,cat,https://example.org/a.png,,,", "line 3, column photo: .*is an address; nothing is downloaded"),
        ("train,cat,photos\\a.png,,,", r"line 3, column photo: .*a path has / between its parts, not \\"),
        ("train,cat,pipe.png,,,", "line 3, column photo: 'pipe.png': is not a file"),
        ("train,cat,.,,,", "line 3, column photo: '.': is not a file"),
        ("train,cat,tone.wav,,,", "line 3, column photo: 'tone.wav': .*not an image"),
        ("train,cat,,corrupt.mp3,,", "line 3, column noise: 'corrupt.mp3': "),
        ("train,cat,,cut.wav,,", "line 3, column noise: 'cut.wav': .*cut short"),
        ("train,cat,,,\" \t\",", "line 3, column note: .*blank"),
        ("train,cat,,,,nan.npy", r"line 3, column values: 'nan.npy': the tensor holds nan at \[1\]"),
        ("train,cat,,,,inf.npy", r"line 3, column values: 'inf.npy': the tensor holds inf at \[0\]"),
        ("train,cat,,,,\"[1, NaN]\"", r"line 3, column values: .*the tensor holds nan at \[1\]"),
        ("train,cat,,,,\"[1, Infinity]\"", r"line 3, column values: .*the tensor holds inf at \[1\]"),
        ("train,cat,,,,\"[1]\"", r"line 3, column values: '\[1\]': takes the shape \[2\], got a tensor of \[1\]"),
        ("train,cat,,,,\"[[1], 2]\"", "line 3, column values: .*list of unequal lengths"),
        ("train,cat,,,,objects.npy", "line 3, column values: 'objects.npy': is not an .npy array"),
        ("train,cat,,,,white.png", "line 3, column values: 'white.png': is neither an .npy nor an .npz"),
    ],
)  # fmt: skip
def test_a_wrong_cell_is_named(folder: Path, row: str, problem: str) -> None:
    with pytest.raises(InvalidData, match=r"manifest\.csv, " + problem):
        load(folder, row)


def test_an_item_above_the_limit_is_refused(folder: Path) -> None:
    with pytest.raises(
        InvalidData, match=r"column photo: 'white.png': \d+ bytes are more than data.max_item_bytes = 50"
    ):
        load(folder, "train,cat,white.png,,,", max_item_bytes=50)


def test_a_recording_of_three_hours_is_refused_without_being_decoded(folder: Path) -> None:
    soundfile.write(folder / "long.ogg", np.zeros(8_000, np.float32), 8_000)
    header = 8_000 * 3 * 3_600
    with soundfile.SoundFile(folder / "long.flac", "w", 8_000, 1) as file:
        for _ in range(header // 4_000_000):
            file.write(np.zeros(4_000_000, np.float32))
        file.write(np.zeros(header % 4_000_000, np.float32))
    with pytest.raises(InvalidData, match=r"column noise: 'long.flac': 10800.0 s are longer than the limit of 60.0 s"):
        load(folder, "train,cat,,long.flac,,")
    assert load(folder, "train,cat,,long.flac,,", max_audio_duration_s=4 * 3_600.0)["noise"].shape == (1, 80)


def test_sample_rates_may_be_mixed(folder: Path) -> None:
    wav(folder / "fast.wav", 48_000, 0.01)
    pools = load(folder, "train,cat,,fast.wav,,\ntrain,cat,,tone.wav,,")
    assert pools["noise"].shape == (2, 80)
    assert np.abs(pools["noise"][0, 10:70] - 0.5).max() < 0.05


def test_sixteen_bits_and_turned_pictures(folder: Path) -> None:
    Image.fromarray(np.full((4, 2), 32_768, np.uint16)).save(folder / "xray.png")
    turned = Image.fromarray(np.array([[0, 0, 0, 0], [255, 255, 255, 255]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.png", exif=exif)
    photos = load(folder, "train,cat,xray.png,,,\ntrain,cat,turned.png,,,")["photo"]
    assert photos[0] == pytest.approx(np.full((1, 4, 2), 0.5), abs=0.01)
    assert photos[1, 0].tolist() == [[1.0, 0.0]] * 4


@pytest.mark.parametrize("text", ["🐈‍⬛🐾", "مرحبا بالعالم", "שלום", "ﷺ" * 500, "a\u202eb"])
def test_texts_of_any_script_are_read(folder: Path, text: str) -> None:
    assert (load(folder, f"train,cat,,,{text},")["note"][1] != 0).any()


def test_numbers_may_stand_in_the_cell(folder: Path) -> None:
    assert load(folder, 'train,cat,,,,"[1.5, -2]"')["values"].tolist() == [[1.5, -2.0]]


def test_problems_are_all_counted_and_the_first_is_told(folder: Path) -> None:
    lines = "".join("train,cow,,,hello,\n" for _ in range(1_200))
    with pytest.raises(InvalidData, match=r"line 3, .*\(and 1199 more problems; `plaudit data check` lists them\)"):
        load(folder, lines.rstrip())


@pytest.mark.parametrize("weight", ["-1", "heavy", "nan", "inf"])
def test_a_weight_that_is_none(folder: Path, weight: str) -> None:
    text = f"{HEADER.strip()},weight\ntrain,cat,,,hello,,{weight}\n"
    (folder / "manifest.csv").write_text(text)
    with pytest.raises(InvalidData, match=f"line 2, column weight: '{weight}' is not a number ≥ 0"):
        read_rows(folder, SPEC, DataConfig()).check()


# --- archives ---------------------------------------------------------------------------------------------------------


def archives(folder: Path) -> DataFiles:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/a.bin", b"zip")
        archive.writestr("bomb.bin", bytes(2**22))
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name, kind in (("a.bin", tarfile.REGTYPE), ("link", tarfile.SYMTYPE), ("device", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, 3 if kind == tarfile.REGTYPE else 0, "/etc/passwd"
            archive.addfile(info, io.BytesIO(b"tar"))
    with tarfile.open(folder / "a.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.bin"))
    np.savez(folder / "a.npz", x=np.arange(6, dtype=np.int16).reshape(2, 3))
    np.save(folder / "a.npy", np.arange(4.0))
    (folder / "odd#name.bin").write_bytes(b"odd")
    (folder / "damaged.zip").write_bytes(b"PK\x03\x04 and nothing else")
    return DataFiles(folder, max_item_bytes=2**20)


@pytest.mark.parametrize(
    ("reference", "content"),
    [("a.zip#in/a.bin", b"zip"), ("a.tar#a.bin", b"tar"), ("odd#name.bin", b"odd")],
)
def test_members_of_archives_are_read(folder: Path, reference: str, content: bytes) -> None:
    assert archives(folder).read(reference) == content


@pytest.mark.parametrize(
    ("reference", "array"),
    [("a.npz#x", [[0, 1, 2], [3, 4, 5]]), ("a.npz#x[1]", [3, 4, 5]), ("a.npz#x[1,2]", 5), ("a.npy#[3]", 3.0)],
)
def test_arrays_are_read(folder: Path, reference: str, array: object) -> None:
    np.testing.assert_array_equal(np.asarray(archives(folder).read(reference)), array)


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("a.zip#a.bin", "the archive has no member 'a.bin'; it has 'in/a.bin'"),
        ("a.zip#b.bin", r"the archive has no member 'b.bin'; it has 2 members"),
        ("a.zip#bomb.bin", "4194304 bytes are more than data.max_item_bytes = 1048576"),
        ("a.tar#link", "is a link or a device in its archive"),
        ("a.tar#device", "is a link or a device in its archive"),
        ("a.tar.gz#a.bin", "make it a .zip or .tar"),
        ("damaged.zip#a", "damaged.zip is not a zip archive"),
        ("a.npz#y[0]", r"has no array 'y'; its arrays are \['x'\]"),
        ("a.npz#x[2]", r"has the shape \[2, 3\], and \[2\] is outside of it"),
        ("../data/../secret.png", "leads out of the folder"),
        ("../x.zip#a", "cannot be opened"),
        ("a\0b", "has a NUL character"),
    ],
)
def test_a_reference_that_leads_to_nothing_says_why(folder: Path, reference: str, problem: str) -> None:
    with pytest.raises(UnusableItem, match=problem):
        archives(folder).read(reference)


def test_a_size_that_a_zip_makes_up_is_found_out(folder: Path) -> None:
    """The central directory says 10 bytes where there are 4 MiB."""
    archives(folder)
    data = bytearray((folder / "a.zip").read_bytes())
    at = data.rindex(b"bomb.bin") - 46
    data[at + 24 : at + 28] = (10).to_bytes(4, "little")
    (folder / "liar.zip").write_bytes(data)
    with pytest.raises(UnusableItem, match=r"liar\.zip cannot be read"):
        DataFiles(folder, max_item_bytes=2**20).read("liar.zip#bomb.bin")


def test_an_npy_that_claims_more_than_it_has_takes_no_memory(folder: Path) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
    (folder / "huge.bin").write_bytes(file.getvalue())
    with pytest.raises(InvalidData, match=r"column values: 'huge\.bin': says it has 1099511627776 values"):
        load(folder, "train,cat,,,,huge.bin")


# --- targets ----------------------------------------------------------------------------------------------------------


STARS = ModelSpec("stars", {"note": TextModality()}, ("1", "2", "4"))


def test_several_right_actions() -> None:
    reader = TargetReader(STARS, "actions", {"two": "2"})
    _, shares, _ = target_arrays([reader.read("4|two"), reader.read('["1"]')], 3, "actions")
    assert shares is not None
    assert shares.tolist() == [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]


def test_a_number_lies_between_two_actions() -> None:
    """3.5 is three quarters of the way from 2 to 4."""
    reader = TargetReader(STARS, "number", {})
    best, shares, _ = target_arrays([reader.read("3.5"), reader.read("1")], 3, "number")
    assert shares is not None
    assert shares.tolist() == [[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]]
    assert best.tolist() == [2, 0]


def test_a_ranking_has_the_best_first() -> None:
    reader = TargetReader(STARS, "ranking", {})
    best, _, ranking = target_arrays([reader.read("2>1"), reader.read('["4", "1", "2"]')], 3, "ranking")
    assert ranking is not None
    assert (best.tolist(), ranking.tolist()) == ([1, 2], [[1, 0, -1], [2, 0, 1]])


@pytest.mark.parametrize(
    ("kind", "cell", "problem"),
    [
        ("number", "5", r"'5' is outside of the actions, 1 to 4"),
        ("number", "many", "'many' is not a number"),
        ("actions", "1|", "has an empty place"),
        ("actions", "1|3", r"'3' is not an action of 'stars'"),
        ("ranking", "1>2>1", "has an action twice"),
    ],
)
def test_a_wrong_target_is_named(tmp_path: Path, kind: Any, cell: str, problem: str) -> None:
    (tmp_path / "manifest.csv").write_text(f"split,action,note\ntrain,{cell},hello\n")
    with pytest.raises(InvalidData, match="line 2, column action: .*" + problem.removeprefix(f"'{cell}' ")):
        read_rows(tmp_path, STARS, DataConfig(target_kind=kind)).check()


def test_an_action_that_is_added_later_needs_no_other_rows(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("split,action,note\ntrain,1,one\nval,2,two\n")
    more = ModelSpec("stars", STARS.modalities, (*STARS.actions, "5"))
    rows = read_rows(tmp_path, more, DataConfig())
    rows.check()
    assert StreamedData(rows, "train", tokenizer_for(rows)).decoded().action.tolist() == [0]

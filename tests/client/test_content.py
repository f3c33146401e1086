"""What users hand in becomes the right kind of content, or is refused with a way out."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from plaudit.client import ClientError, audio, image, tensor, text
from plaudit.client.content import sniff, to_content
from plaudit.core.events import TensorContent
from plaudit.core.wire import content_from_wire
from plaudit.v1 import content_pb2


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000"])
def test_images_are_known_by_their_first_bytes(image_format: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, image_format)
    assert to_content("x", file.getvalue()).WhichOneof("kind") == "image"


@pytest.mark.parametrize("sound_format", ["WAV", "RF64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF"])
def test_sounds_are_known_by_their_first_bytes(sound_format: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000, np.float32), 8000, format=sound_format)
    assert to_content("x", file.getvalue()).WhichOneof("kind") == "audio"


def test_an_mp3_with_tags_is_a_sound() -> None:
    assert sniff(b"ID3\x04\x00") == "audio"


def test_a_riff_that_is_neither_is_unknown() -> None:
    assert sniff(b"RIFF" + struct.pack("<I", 4) + b"AVI ") is None


@pytest.mark.parametrize(
    ("beginning", "kind"),
    [
        (b"\x00\x00\x00\x18ftypheic", "image"),
        (b"\x00\x00\x00\x18ftypM4A ", "audio"),
        (b"\x00\x00\x00\x18ftypisom", None),  # a video
        (b"\x1aE\xdf\xa3", "audio"),
        (b"#!AMR\n", "audio"),
        (b"\xff\xf1\x50\x80", "audio"),
    ],
)
def test_what_phones_record_has_a_kind_so_that_the_server_can_say_what_it_is(beginning: bytes, kind: str) -> None:
    assert sniff(beginning + bytes(20)) == kind


def test_a_file_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit.client.content._MAX_FILE_BYTES", 1000)
    with pytest.raises(ClientError, match="/dev/zero has more than the limit of 1000 bytes"):
        to_content("image", Path("/dev/zero"))


def test_unknown_bytes_are_refused_and_the_helpers_named() -> None:
    with pytest.raises(ClientError, match=r"5 bytes beginning b'hello'.*image\(\.\.\.\), audio") as refused:
        to_content("photo", b"hello")
    assert refused.value.field == 'content["photo"]'


def test_a_path_is_read_and_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (2, 2)).save(path)
    assert to_content("image", path).image == path.read_bytes()


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"gone.png cannot be read \(No such file") as refused:
        to_content("image", tmp_path / "gone.png")
    assert refused.value.field == 'content["image"]'


def test_a_string_is_text_also_where_it_looks_like_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (2, 2)).save(path)
    assert to_content("question", str(path)) == content_pb2.Content(text=str(path))


def test_helpers_say_outright_what_the_bytes_are() -> None:
    assert image(b"?").image == b"?"
    assert audio(b"?").audio == b"?"
    assert text("?").text == "?"
    given = image(b"?")
    assert to_content("x", given) is given


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.arange(6, dtype=np.float32).reshape(2, 3), np.float32),
        (np.arange(6, dtype=np.float64).reshape(2, 3), np.float64),
        (np.arange(6, dtype=np.longdouble).reshape(2, 3), np.float64),
        (np.array(2.5, np.float32), np.float32),
        (np.float16(2.5), np.float16),
        (np.array([True, False]), np.bool_),
        (np.arange(6, dtype=">i4").reshape(2, 3)[:, ::2], np.int32),
        (np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)), np.float32),
        (np.arange(6, dtype=np.uint8).reshape(2, 3), np.uint8),
    ],
)
def test_an_array_is_a_tensor_that_the_server_reads_back(given: Any, dtype: Any) -> None:
    read = content_from_wire(to_content("radar", given), "radar")
    assert isinstance(read, TensorContent)
    assert read.array.dtype == dtype
    np.testing.assert_array_equal(read.array, given)


def test_nested_lists_make_a_tensor() -> None:
    assert list(tensor([[1.0, 2.0]]).tensor.shape) == [1, 2]


def test_an_array_of_strings_is_no_tensor() -> None:
    with pytest.raises(ClientError, match="dtype <U1 is none that can be sent; there are float32"):
        tensor(["a"])


def test_a_list_is_not_guessed_at() -> None:
    with pytest.raises(ClientError, match="list is not content"):
        to_content("x", [1.0])  # type: ignore[arg-type]

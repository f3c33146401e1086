"""Content from strangers becomes graph inputs, or an InvalidContent that says what is wrong and what to do."""

import contextlib
import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from plaudit_models.errors import InvalidContent
from plaudit_models.limits import Limits
from plaudit_models.media.images import decode_image
from plaudit_models.media.sounds import decode_audio
from plaudit_models.preprocess import (
    assemble,
    check_tensor,
    decode,
    read_tokenizer,
    tokenize,
    tokenize_all,
    train_tokenizer,
)
from plaudit_models.spec import AudioModality, ImageModality, ModelSpec, TensorModality, TextModality

GREY = ImageModality(height=2, width=3, channels=1)
RGB = ImageModality(height=4, width=4, channels=3)
SOUND = AudioModality(sample_rate_hz=8_000, max_duration_s=0.5)
TEXT = TextModality(max_tokens=8)
RADAR = TensorModality(shape=(2, 2))
TOKENIZER = train_tokenizer(["what digit do you hear", "what number do you see"] * 3)


def png(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=image_format, **options)
    return file.getvalue()


def sound(samples: np.ndarray, rate_hz: int = 8_000, container: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=container, subtype=subtype)
    return file.getvalue()


def tone(rate_hz: int, duration_s: float, hz: float = 200.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * duration_s)) / rate_hz)


# Images


def test_a_grey_image_of_the_right_size_is_its_pixels_over_255() -> None:
    pixels = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)
    decoded = decode_image(png(Image.fromarray(pixels)), GREY, name="photo")
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, [[[0.0, 0.2, 0.4], [0.6, 0.8, 1.0]]], atol=1e-6)


def test_channels_come_first() -> None:
    decoded = decode_image(png(Image.new("RGB", (9, 5), (255, 0, 51))), RGB, name="photo")
    assert decoded.shape == (3, 4, 4)
    np.testing.assert_allclose(decoded[:, 2, 2], [1.0, 0.0, 0.2], atol=1e-6)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    """32896 of 65535 is 0.502, which 8 bits keep as 128 / 255 = 0.502; clipping would give 1."""
    pixels = np.full((2, 3), 32_896, np.uint16)
    decoded = decode_image(png(Image.fromarray(pixels)), GREY, name="xray")
    np.testing.assert_allclose(decoded, np.full((1, 2, 3), 128 / 255), atol=1e-6)


def test_transparent_pixels_are_white() -> None:
    decoded = decode_image(png(Image.new("RGBA", (3, 2), (0, 0, 0, 0))), GREY, name="logo")
    np.testing.assert_allclose(decoded, np.ones((1, 2, 3)))


def test_a_photo_taken_sideways_is_turned_upright() -> None:
    """EXIF orientation 6: the camera was turned; the file's left column is the top row of the scene."""
    stored = Image.new("L", (40, 40), 0)
    stored.paste(255, (0, 0, 20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image(png(stored, "JPEG", exif=exif), ImageModality(2, 2, 1), name="photo")
    assert decoded[0, 0].min() > 0.8
    assert decoded[0, 1].max() < 0.2


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_known_image_formats_decode(image_format: str) -> None:
    decoded = decode_image(png(Image.new("RGB", (20, 10), (250, 250, 250)), image_format), RGB, name="photo")
    assert decoded.min() > 0.9


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "photo: 0 bytes of image; leave the modality out"),
        (b"hello, world", r"photo: b'hello, world'… \(12 bytes\) is not an image; send a PNG, JPEG, WEBP, AVIF, GIF"),
        (png(Image.effect_noise((64, 64), 50))[:900], "photo: the PNG image of 900 bytes is damaged .*whole file"),
        (png(Image.new("L", (1001, 1000))), "photo: 1001×1000 pixels are more than the limit of 1000000; shrink"),
        (bytes(200_001), "photo: 200001 bytes of image are more than the limit of 200000; send less"),
        (
            struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 0, 9, 1, 24, *[0] * 6),
            "photo: the image has 0×9 pixels; send one that has some",
        ),
    ],
    ids=["empty", "not an image", "truncated", "too many pixels", "too many bytes", "no pixels"],
)
def test_a_bad_image_says_why(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidContent, match=problem):
        decode_image(data, RGB, name="photo", limits=Limits(max_image_bytes=200_000, max_image_pixels=1_000_000))


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    """A PNG of 60000×60000 declared in a few bytes: refused before a single pixel is decoded."""
    bomb = bytearray(png(Image.new("L", (1, 1))))
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    with pytest.raises(
        InvalidContent, match="photo: 60000×60000 pixels are more than the limit of 4194304; shrink the image"
    ):
        decode_image(bytes(bomb), RGB, name="photo")


# Sounds


def test_a_sound_at_the_right_rate_keeps_its_samples_and_is_padded() -> None:
    decoded = decode_audio(sound(np.array([0.5, -0.5, 0.25]), subtype="FLOAT"), SOUND, name="voice")
    assert decoded.dtype == np.float32
    assert decoded.shape == (4_000,)
    np.testing.assert_allclose(decoded[:4], [0.5, -0.5, 0.25, 0.0])


def test_stereo_becomes_the_mean_of_its_channels() -> None:
    decoded = decode_audio(sound(np.array([[0.5, 0.0], [0.0, -1.0]]), subtype="FLOAT"), SOUND, name="voice")
    np.testing.assert_allclose(decoded[:2], [0.25, -0.5])


def test_another_rate_is_resampled() -> None:
    decoded = decode_audio(sound(tone(48_000, 0.5), 48_000), SOUND, name="voice")
    np.testing.assert_allclose(decoded[200:3_800], tone(8_000, 0.5)[200:3_800], atol=0.01)


def test_a_long_sound_is_cut() -> None:
    decoded = decode_audio(sound(tone(8_000, 2.0)), SOUND, name="voice")
    np.testing.assert_allclose(decoded, tone(8_000, 0.5), atol=1e-3)


def test_float_samples_beyond_full_scale_are_clipped() -> None:
    assert decode_audio(sound(np.array([3.0, -7.0]), subtype="FLOAT"), SOUND, name="voice")[:2].tolist() == [1.0, -1.0]


@pytest.mark.parametrize(("container", "subtype"), [("WAV", "ULAW"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")])
def test_known_sound_formats_decode(container: str, subtype: str) -> None:
    decoded = decode_audio(sound(tone(8_000, 0.5), container=container, subtype=subtype), SOUND, name="voice")
    np.testing.assert_allclose(np.abs(decoded).max(), 0.5, atol=0.1)


def test_a_wav_from_a_pipe_has_no_declared_length_and_is_read_to_its_end() -> None:
    piped = bytearray(sound(tone(8_000, 0.5)))
    piped[4:8] = piped[40:44] = b"\xff\xff\xff\xff"
    np.testing.assert_allclose(decode_audio(bytes(piped), SOUND, name="voice"), tone(8_000, 0.5), atol=1e-3)


WAV = sound(tone(8_000, 0.4))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "voice: 0 bytes of sound; leave the modality out"),
        (
            b"\x89PNG\r\n\x1a\n....",
            r"voice: b'.x89PNG.*is a PNG image, not a sound that is taken .WAV, FLAC, OGG or MP3.; send a WAV",
        ),
        (WAV[:-1000], "voice: the WAV is cut short: its header says 6400 bytes of samples, 5400 are there; send the"),
        (WAV[:30], "voice: the WAV of 30 bytes is cut short: it has no samples"),
        (sound(tone(8_000, 0.4), container="FLAC", subtype="PCM_16")[:-600], "voice: the sound .*(cut short|damaged)"),
        (b"OggS" + bytes(100), "voice: the OGG holds something unknown; convert it to Vorbis"),
        (sound(np.zeros(0)), "voice: the sound of 44 bytes has no samples; leave the modality out"),
        (sound(np.zeros(24_001)), "voice: 3.0 s are longer than the limit of 3.0 s; cut it"),
        (sound(np.zeros(60_000)), "voice: 120044 bytes of sound are more than the limit of 100000"),
        (sound(np.zeros(9), 100), "voice: a sample rate of 100 Hz is outside 1000…384000 Hz"),
        (sound(np.zeros((9, 12))), "voice: 12 channels are more than the limit of 8; send mono"),
        (sound(np.array([0.0, np.nan]), subtype="FLOAT"), "voice: the sound has samples that are NaN or infinite"),
    ],
    ids=[
        "empty",
        "not a sound",
        "truncated WAV",
        "truncated header",
        "truncated FLAC",
        "damaged OGG",
        "no samples",
        "too long",
        "too many bytes",
        "sample rate",
        "channels",
        "NaN",
    ],
)
def test_a_bad_sound_says_why(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidContent, match=problem):
        decode_audio(data, SOUND, name="voice", limits=Limits(max_audio_bytes=100_000, max_audio_duration_s=3.0))


# Text


def test_text_is_padded_with_zeros_and_cut() -> None:
    short = tokenize("what digit", TEXT, TOKENIZER, name="question")
    assert short.dtype == np.int64
    assert (short[:2] > 0).all()
    assert short[2:].tolist() == [0] * 6
    assert (tokenize("what digit " * 10, TEXT, TOKENIZER, name="question") > 0).all()


def test_case_width_and_surrounding_blanks_make_no_difference() -> None:
    plain = tokenize("what digit", TEXT, TOKENIZER, name="question").tolist()
    assert tokenize("  WHAT Digit ", TEXT, TOKENIZER, name="question").tolist() == plain
    assert tokenize("ｗｈａｔ digit", TEXT, TOKENIZER, name="question").tolist() == plain


def test_an_unseen_word_falls_apart_instead_of_becoming_unknown() -> None:
    ids = TOKENIZER.encode("hearing данные 🎉").ids
    assert TOKENIZER.decode(ids).strip() == "hearing данные 🎉"
    assert TOKENIZER.encode("hearing").tokens[0] == TOKENIZER.encode("hear").tokens[0]


def test_no_text_makes_the_padding_token() -> None:
    assert TOKENIZER.token_to_id("<pad>") == 0
    assert 0 not in TOKENIZER.encode("<pad> <pad>\x00").ids


def test_the_same_texts_give_the_same_tokenizer_and_it_survives_its_file(tmp_path: Path) -> None:
    texts = [f"question number {i}" for i in range(50)]
    first = train_tokenizer(texts)
    assert first.to_str() == train_tokenizer(texts).to_str()
    first.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path / "tokenizer.json").encode("Question 7").ids == first.encode("question 7").ids


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer file"):
        read_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "question: 0 bytes of text; leave the modality out"),
        ("   \n", r"question: the text '   \\n' is blank; leave the modality out"),
        ("x" * 10_000_000, "question: 10000000 bytes of text are more than the limit of 65536; send less"),
        (b"caf\xe9", r"question: the text is not UTF-8 \(unexpected end of data at byte 3\)"),
        ("\ud800", "question: the text is not UTF-8"),
    ],
    ids=["empty", "blank", "10 MB", "latin-1", "lone surrogate"],
)
def test_a_bad_text_says_why(text: str | bytes, problem: str) -> None:
    with pytest.raises(InvalidContent, match=problem):
        tokenize(text, TEXT, TOKENIZER, name="question")


# Tensors


def test_a_good_tensor_passes_unchanged() -> None:
    array = np.array([[1, 2], [3, 4]], np.float32)
    assert check_tensor(array, RADAR, name="radar").tolist() == array.tolist()


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((2, 2), complex), "radar: takes float32, got a tensor of complex128"),
        (
            np.full((2, 2), 1e300),
            r"radar: takes float32, got a tensor of float64 whose value 1e\+300 at \[0, 0\] is none",
        ),
        (np.zeros((2, 3), np.float32), r"radar: takes the shape \[2, 2\], got a tensor of \[2, 3\]"),
        (np.zeros((1, 2, 2), np.float32), r"radar: takes the shape \[2, 2\], got a tensor of \[1, 2, 2\]"),
        (np.zeros((0, 2), np.float32), r"radar: takes the shape \[2, 2\], got a tensor of \[0, 2\]"),
        (np.array([[0, 0], [np.nan, 0]], np.float32), r"radar: the tensor holds nan at \[1, 0\]"),
        (np.array([[0, np.inf], [0, 0]], np.float32), r"radar: the tensor holds inf at \[0, 1\]"),
    ],
)
def test_a_bad_tensor_says_why(array: np.ndarray, problem: str) -> None:
    with pytest.raises(InvalidContent, match=problem):
        check_tensor(array, RADAR, name="radar")


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.array([1, 2]), "int32"),
        (np.array([0, 255]), "uint8"),
        (np.array([1.0, -2.0]), "int64"),
        (np.array([1, -2]), "float32"),
        (np.array([0.1, 0.2]), "float32"),  # rounded
        (np.array([True, False]), "float32"),
        (np.array([1, 0]), "bool"),
        (np.array([2**63], np.uint64), "uint64"),
        (np.array(3.5), "float64"),
    ],
)
def test_a_tensor_of_another_dtype_is_cast(given: np.ndarray, dtype: str) -> None:
    """Clients send what numpy makes of a list (https://github.com/ELS-RD/transformer-deploy/issues/110)."""
    cast = check_tensor(given, TensorModality(given.shape, dtype=dtype), name="x")
    assert cast.dtype == dtype
    assert cast.shape == given.shape
    np.testing.assert_array_equal(cast, given.astype(dtype))


@pytest.mark.parametrize(
    ("value", "given", "wanted"),
    [
        (-1, "int64", "uint64"),
        (2**63, "uint64", "int64"),
        (300, "int64", "uint8"),
        (2**53 + 1, "int64", "float64"),
        (2**63 - 1, "int64", "float64"),
        (2**64 - 1, "uint64", "float64"),
        (2**24 + 1, "int32", "float32"),
        (1.5, "float32", "int32"),
        (2.0**63, "float64", "int64"),
        (2.0**64, "float64", "uint64"),
        (-1.0, "float64", "uint64"),
        (np.nan, "float64", "int64"),
        (2, "int64", "bool"),
        (70_000, "int64", "float16"),
        (70_000.0, "float64", "float16"),
    ],
)
def test_a_value_that_the_input_cannot_hold_is_refused(value: float, given: str, wanted: str) -> None:
    with pytest.raises(InvalidContent, match=rf"x: takes {wanted}, got a tensor of {given} whose value .* is none"):
        check_tensor(np.array([0, value], given), TensorModality((2,), dtype=wanted), name="x")


def test_a_truth_value_is_any_byte_but_0() -> None:
    """A message can hold any byte, and a graph would compute with a 2."""
    given = np.frombuffer(b"\x00\x02", np.bool_)
    assert check_tensor(given, TensorModality((2,), dtype="bool"), name="x").view(np.uint8).tolist() == [0, 1]


def test_a_scalar_of_each_row_stays_one() -> None:
    assert check_tensor(np.array(2.0, np.float32), TensorModality(()), name="age").shape == ()


def test_free_lengths_are_bounded() -> None:
    modality = TensorModality((-1, 2), required=True, max_length=3)
    assert check_tensor(np.zeros((3, 2), np.float32), modality, name="x").shape == (3, 2)
    for length in (0, 4):
        with pytest.raises(InvalidContent, match=rf"x: takes lengths of 1 to 3 .* got \[{length}, 2\]"):
            check_tensor(np.zeros((length, 2), np.float32), modality, name="x")


def test_nan_is_a_value_where_the_model_takes_it() -> None:
    """Tree models read NaN as missing (https://github.com/onnx/sklearn-onnx/issues/1253)."""
    modality = TensorModality((2,), takes_nan=True)
    assert np.isnan(check_tensor(np.array([np.nan, 1.0], np.float32), modality, name="x")[0])
    with pytest.raises(InvalidContent, match=r"x: the tensor holds inf at \[1\]; infinite values are not taken"):
        check_tensor(np.array([np.nan, np.inf], np.float32), modality, name="x")


@pytest.mark.parametrize("token", [-1, 10])
def test_token_ids_outside_the_vocabulary_are_refused(token: int) -> None:
    ids = np.array([1, token, 0, 0, 0, 0, 0, 0])
    with pytest.raises(InvalidContent, match=r"question: token ids run from .* the vocabulary is 0…9"):
        check_tensor(ids, TEXT, name="question", vocabulary_size=10)


# Any content


def test_decode_takes_what_each_modality_takes() -> None:
    assert decode(png(Image.new("L", (3, 2))), GREY, name="photo").shape == (1, 2, 3)
    assert decode(WAV, SOUND, name="voice").shape == (4_000,)
    assert decode("what", TEXT, name="question", tokenizer=TOKENIZER).shape == (8,)
    assert decode(b"what", TEXT, name="question", tokenizer=TOKENIZER).shape == (8,)
    assert decode(np.zeros((1, 2, 3), np.float32), GREY, name="photo").shape == (1, 2, 3)


def test_decode_refuses_content_of_another_sort() -> None:
    with pytest.raises(InvalidContent, match="photo: takes an encoded image as bytes, got the text 'a cat'"):
        decode("a cat", GREY, name="photo")
    with pytest.raises(InvalidContent, match=r"radar: takes a float32 tensor of shape \[2, 2\], got 3 bytes"):
        decode(b"abc", RADAR, name="radar")
    beyond = np.full(8, TOKENIZER.get_vocab_size())
    with pytest.raises(InvalidContent, match="question: token ids"):
        decode(beyond, TEXT, name="question", tokenizer=TOKENIZER)


def test_an_error_survives_the_way_back_from_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(InvalidContent("photo", "is upside down")))
    assert (str(error), error.modality, error.problem) == ("photo: is upside down", "photo", "is upside down")


SPEC = ModelSpec("m", {"photo": GREY, "question": TEXT}, ("yes", "no"))


def test_assemble_stacks_requests_and_marks_what_is_there() -> None:
    photo, question = np.ones((1, 2, 3), np.float32), np.arange(8)
    batch = assemble(SPEC, [{"photo": photo}, {"question": question, "photo": 2 * photo}, {}])
    assert list(batch) == ["photo", "question", "present"]
    assert batch["photo"][:, 0, 0, 0].tolist() == [1.0, 2.0, 0.0]
    assert batch["question"].tolist() == [[0] * 8, list(range(8)), [0] * 8]
    assert batch["present"].tolist() == [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    assert {name: array.dtype for name, array in batch.items()} == {
        "photo": np.float32,
        "question": np.int64,
        "present": np.float32,
    }


def test_assemble_refuses_an_unknown_modality() -> None:
    with pytest.raises(ValueError, match=r"row 1: 'smell' is not a modality of 'm', which has \['photo', 'question'\]"):
        assemble(SPEC, [{}, {"smell": np.zeros(1)}])


# Nothing else gets out

_NOISE = np.random.default_rng(0)
_IMAGES = [
    png(Image.fromarray(_NOISE.integers(0, 255, (12, 9, 3), dtype=np.uint8)), image_format)
    for image_format in ("PNG", "JPEG", "WEBP", "GIF", "BMP")
]
_SOUNDS = [
    sound(tone(8_000, 0.05), container=container, subtype=subtype)
    for container, subtype in (("WAV", "PCM_16"), ("WAV", "IMA_ADPCM"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"))
]


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """A file with some bytes changed, and maybe cut."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 8))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=300), damaged(_IMAGES)))
def test_any_bytes_are_an_image_or_invalid(data: bytes) -> None:
    with contextlib.suppress(InvalidContent):
        decoded = decode_image(data, RGB, name="photo", limits=Limits(max_image_pixels=1_000_000))
        assert decoded.shape == RGB.shape
        assert 0.0 <= decoded.min() <= decoded.max() <= 1.0


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=300), damaged(_SOUNDS)))
def test_any_bytes_are_a_sound_or_invalid(data: bytes) -> None:
    with contextlib.suppress(InvalidContent):
        decoded = decode_audio(data, SOUND, name="voice")
        assert decoded.shape == SOUND.shape
        assert -1.0 <= decoded.min() <= decoded.max() <= 1.0


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.binary()))
def test_any_text_is_tokens_or_invalid(text: str | bytes) -> None:
    with contextlib.suppress(InvalidContent):
        ids = tokenize(text, TEXT, TOKENIZER, name="question")
        assert ids.shape == TEXT.shape
        assert ids[0] > 0
        assert ids.max() < TOKENIZER.get_vocab_size()


class Counting:
    """A tokenizer that remembers the size of the longest text it was given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.longest_bytes = 0

    def encode(self, text: str, **options: bool) -> Any:
        self.longest_bytes = max(self.longest_bytes, len(text.encode()))
        return self._tokenizer.encode(text, **options)

    def encode_batch(self, texts: list[str], **options: bool) -> Any:
        self.longest_bytes = max(self.longest_bytes, *(len(text.encode()) for text in texts))
        return self._tokenizer.encode_batch(texts, **options)


@pytest.mark.parametrize("text", ["\ufdfa" * 20_000, "word " * 12_000, "👩" * 15_000, " " * 5_000 + "word"])
def test_a_text_is_cut_to_what_can_matter_before_the_tokenizer(text: str) -> None:
    """U+FDFA becomes eighteen characters, and the tokenizer works on all of them."""
    modality, real = TextModality(max_tokens=8), train_tokenizer(["what is in this word"])
    counting: Any = Counting(real)
    ids = tokenize(text, modality, counting, name="question")
    assert counting.longest_bytes <= 8 * 32
    assert ids.tolist() == tokenize(text.lstrip()[:500], modality, real, name="question").tolist()
    tokenize_all([text, "word"], modality, counting)
    assert counting.longest_bytes <= 8 * 32

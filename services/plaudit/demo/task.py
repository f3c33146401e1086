"""The demo's task hear-see-ask: a handwritten digit, a spoken digit and a question about them.

The image and the sound each hold a digit; the text asks for one of them, the larger one, their sum, or (never
labelled) the smaller one or how far apart they are. No modality suffices alone. Handwriting is scikit-learn's digits,
speech comes from :mod:`plaudit.demo.speech`; nothing is downloaded.
Knows nothing about users, servers or training.

The data falls into four parts which share no image, no voice and (see :func:`questions`) partly no wording:
    train, val    pre-training and its early stopping
    traffic       requests of users
    test          what versions are evaluated on
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

from plaudit.demo import MODEL
from plaudit.demo.speech import MAX_DURATION_S, SAMPLE_RATE_HZ, spoken_digits
from plaudit_models.spec import AudioModality, ImageModality, ModelSpec, TextModality

Part = Literal["train", "val", "traffic", "test"]
Kind = Literal["hear", "see", "larger", "add", "smaller", "apart"]

LABELLED_KINDS: Final[tuple[Kind, ...]] = ("hear", "see", "larger", "add")
NEW_KIND: Final[Kind] = "smaller"
KINDS: Final[tuple[Kind, ...]] = (*LABELLED_KINDS, NEW_KIND)
"""Kinds of question in the demo."""
HARD_KIND: Final[Kind] = "apart"
"""Kind that is never labelled either and whose answers no labelled kind has; only the benchmark asks it."""

SPEC: Final = ModelSpec(
    name=MODEL,
    modalities={
        "image": ImageModality(height=16, width=16, channels=1),
        "audio": AudioModality(sample_rate_hz=SAMPLE_RATE_HZ, max_duration_s=MAX_DURATION_S),
        "question": TextModality(max_tokens=24),
    },
    actions=tuple(str(number) for number in range(19)),
)

BLOCK_ITEMS: Final = 64
"""Number of images and of sounds in one block of rows."""
BLOCK_ROWS: Final = 2 * BLOCK_ITEMS
"""Number of rows in one block: each image and each sound occurs in two questions, paired anew."""


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its content and its answer.

    Attributes:
        image: PNG; audio: WAV; question: text.
        seen, heard: the digits in them.
        answer: the right answer, as a label would have it.
    """

    kind: Kind
    image: bytes
    audio: bytes
    question: str
    seen: int
    heard: int
    answer: str


@dataclass(frozen=True, slots=True)
class Pool:
    """Images (PNG) and sounds (WAV) of one part, with the digit in each."""

    part: Part
    images: Sequence[bytes]
    image_digits: Sequence[int]
    sounds: Sequence[bytes]
    sound_digits: Sequence[int]


# Consecutive blocks of scikit-learn's digits are by different writers.
_IMAGES: Final[Mapping[Part, range]] = {
    "train": range(1050),
    "val": range(1050, 1150),
    "traffic": range(1150, 1450),
    "test": range(1450, 1797),
}
SOUNDS_PER_DIGIT: Final[Mapping[Part, int]] = {"train": 300, "val": 20, "traffic": 100, "test": 100}

# Variants that differ by a number only (steph, steph2, …) stand in one part. Whispers and robots are left out.
# fmt: off
_VOICES: Final[Mapping[Part, tuple[str, ...]]] = {
    "train": (
        "Alex", "Alicia", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2", "Jacky", "Lee", "Mario", "Mr serious",
        "RicishayMax", "RicishayMax2", "RicishayMax3", "Tweaky", "adam", "anika", "announcer", "belinda", "boris",
        "croak", "david", "ed", "f1", "f2", "fast", "gustave", "iven", "iven2", "iven3", "iven4", "john", "kaukovalta",
        "klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6", "linda", "m1", "m2", "m3", "m4", "norbert", "paul",
        "pedro", "quincy", "rob", "sandro", "steph", "steph2", "steph3", "travis", "zac",
    ),
    "val": ("Andrea", "Michael", "f5", "m8", "max"),
    "traffic": (
        "Henrique", "Hugo", "antonio", "benjamin", "edward", "edward2", "f3", "grandma", "ian", "m5", "m6", "michel",
        "shelby",
    ),
    "test": (
        "Nguyen", "Reed", "Storm", "aunty", "f4", "grandpa", "m7", "marcelo", "miguel", "pablo", "robert", "victor",
    ),
}
# fmt: on

# Parts of a question: before, core, after. "(a|b)" is a choice.
_FRAMES: Final = (
    "(|so |ok |hey |well |right |now |hello |excuse me |a question: |just one thing |one question more |hi you there )",
    "(|?| please| please?| now| here| for me| thanks| if you can)",
)
_OTHER_FRAMES: Final = (
    "(|hi |alright |hey there |one more thing |ok so |a quick question: |right now )",
    "(|?| right now| for us| thank you| now please| here please?)",
)
_CORES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "hear": (
        "(what|which) (digit|number) (do|can|did) you hear",
        "(what|which) (digit|number) (was said|is spoken|is being said|is in the sound|is in the recording)",
        "(say|name|tell me|give me|repeat) the (digit|number) (you hear|you heard|that was said|in the sound)",
        "(say|name|tell me|give me|repeat) the (digit|number) (that is spoken|in the recording|from the audio)",
        "what is the (spoken|said|heard) (digit|number)",
        "what (did the voice say|does the voice say|did they say|is the voice saying|does the sound say)",
    ),
    "see": (
        "(what|which) (digit|number) (do|can|did) you see",
        "(what|which) (digit|number) (is shown|is written|is drawn|is in the picture|is in the image)",
        "(say|name|tell me|give me|read) the (digit|number) (you see|you saw|that is written|in the picture)",
        "(say|name|tell me|give me|read) the (digit|number) (that is drawn|in the image|on the paper)",
        "what is the (written|drawn|shown) (digit|number)",
        "what (does the picture show|does the image show|is written|did they write|does the paper show)",
        "what (digit|number) is it that they (wrote|drew)",
    ),
    "larger": (
        "(which|what) (digit|number|one) is (larger|bigger|greater|higher|the most)",
        "(which|what) is the (larger|bigger|greater|higher|largest|biggest|highest) (digit|number|one|of the two)",
        "(say|name|tell me|give me|find) the (larger|bigger|greater|higher|largest|biggest|highest) (one|of the two)",
        "(say|name|tell me|give me|find) the (larger|bigger|greater|higher) (digit|number|of both)",
        "which of (the two|both|both digits|the two numbers) is (larger|bigger|greater|higher|the largest|the biggest)",
        "the (maximum|larger|bigger|greater) of (the two|both|the picture and the sound)",
    ),
    "add": (
        "(what is|tell me|give me|say|find) the (sum|total) of (both|the two|the two digits|the two numbers)",
        "(what is|tell me|give me|say|find) the (sum|total)( of the picture and the sound|)",
        "(add|sum|add up) (both|the two|them|the two numbers|the two digits|the picture and the sound)",
        "(how much|what) (are|do) (both|the two|the two numbers) (together|added up|make in total|make in sum)",
        "(picture|image) plus (sound|audio|voice)",
        "what do you get (adding|by adding) (both|the two|them|the two digits)",
    ),
    "smaller": (
        "(which|what) (digit|number|one) is (smaller|littler|lesser|lower|the least)",
        "(which|what) is the (smaller|littler|lesser|lower|smallest|littlest|lowest) (digit|number|one|of the two)",
        "(say|name|tell me|give me|find) the (smaller|littler|lesser|lower|smallest|littlest|lowest) (one|of the two)",
        "(say|name|tell me|give me|find) the (smaller|littler|lesser|lower) (digit|number|of both)",
        "which of (the two|both|both digits|the two numbers) is (smaller|littler|lesser|the smallest|the lowest)",
        "the (minimum|smaller|littler|lesser) of (the two|both|the picture and the sound)",
    ),
    "apart": (
        "how far (apart|away|off) are (both|they|the two|the two digits|the two numbers)",
        "how far apart are (the digits|the numbers|the picture and the sound)",
        "(what is|tell me|give me|say|find) the (difference|distance|gap) (of|between) (both|the two|the two numbers)",
        "(what is|tell me|give me|say|find) the (difference|distance|gap)( of the picture and the sound|)",
        "how (far|much) (is|lies) (one|it) from the other",
        "(subtract|take) (one|the one) from the other",
    ),
}
_TEST_CORES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "hear": (
        "(what|which) (digit|number) (does|did) the (voice|sound|audio|recording) say",
        "(can|could) you (say|name|repeat) the (digit|number) (they said|the voice said|being said)",
        "i want the (spoken|said) (digit|number)",
        "(the|this) (voice|sound|recording) is saying (what|which) (digit|number)",
    ),
    "see": (
        "(what|which) (digit|number) (does|did) the (picture|image|paper) show",
        "(can|could) you (say|name|read) the (digit|number) (they wrote|they drew|being shown)",
        "i want the (written|drawn) (digit|number)",
        "(the|this) (picture|image|paper) is showing (what|which) (digit|number)",
    ),
    "larger": (
        "of the two (digits|numbers|) which is the (larger|bigger|greater|highest)",
        "(can|could) you (say|name|find) the (larger|bigger|greater|highest) of these",
        "i want the (larger|bigger|greater|highest) (digit|number)",
        "which (of them|of these two|of those) is the (larger|bigger|greater|highest)",
    ),
    "add": (
        "the two (digits|numbers) (together|added up) make what",
        "(can|could) you (add|sum|add up) (these|the digits|the numbers)",
        "i want the (sum|total) of (these|the digits|the numbers|them)",
        "what (sum|total) do (they|both|the two) make",
    ),
    "smaller": (
        "of the two (digits|numbers|) which is the (smaller|littler|lesser|lowest)",
        "(can|could) you (say|name|find) the (smaller|littler|lesser|lowest) of these",
        "i want the (smaller|littler|lesser|lowest) (digit|number)",
        "which (of them|of these two|of those) is the (smaller|littler|lesser|lowest)",
    ),
    "apart": (
        "the two (digits|numbers|) are how far apart",
        "(can|could) you (say|name|find) the (difference|distance|gap) of these",
        "i want the (difference|distance|gap) (of|between) (these|the digits|the numbers|them)",
        "what (difference|distance|gap) do (they|both|the two) have",
    ),
}


def questions(kind: Kind, part: Part) -> tuple[str, ...]:
    """All wordings of a kind of question in one part.

    Validation and traffic put the cores of training between other openings and closings; the test part asks in other
    words altogether.
    """
    before, after = _FRAMES if part == "train" else _OTHER_FRAMES
    cores = _TEST_CORES if part == "test" else _CORES
    return tuple(dict.fromkeys(text for core in cores[kind] for text in _expand(before + core + after)))


def answer(kind: Kind, seen: int, heard: int) -> int:
    """Right answer to a kind of question."""
    match kind:
        case "hear":
            return heard
        case "see":
            return seen
        case "larger":
            return max(seen, heard)
        case "add":
            return seen + heard
        case "smaller":
            return min(seen, heard)
        case "apart":
            return abs(seen - heard)


def collect(part: Part, seed: int, *, sounds_per_digit: Mapping[Part, int] = SOUNDS_PER_DIGIT) -> Pool:
    """Images and sounds of one part. The same arguments give the same bytes.

    Raises:
        SpeechFailed: espeak-ng does not work here.
    """
    digits = load_digits()
    chosen = _IMAGES[part]
    sound_digits = [digit for digit in range(10) for _ in range(sounds_per_digit[part])]
    return Pool(
        part=part,
        images=[_png(digits.images[i]) for i in chosen],
        image_digits=[int(digits.target[i]) for i in chosen],
        sounds=spoken_digits(sound_digits, _VOICES[part], seed=_seed(seed, part)),
        sound_digits=sound_digits,
    )


def evaluation_examples(pool: Pool, *, per_kind: int, seed: int, kinds: Sequence[Kind] = KINDS) -> list[Example]:
    """``per_kind`` examples of each of the kinds, kinds in turn."""
    rng = np.random.default_rng(seed)
    texts = {kind: questions(kind, pool.part) for kind in kinds}
    return [draw(pool, kind, texts[kind], rng) for _ in range(per_kind) for kind in kinds]


def draw(pool: Pool, kind: Kind, texts: Sequence[str], rng: np.random.Generator) -> Example:
    """Example of a random image, a random sound and a question out of ``texts``."""
    image, sound = int(rng.integers(len(pool.images))), int(rng.integers(len(pool.sounds)))
    seen, heard = pool.image_digits[image], pool.sound_digits[sound]
    return Example(
        kind=kind,
        image=pool.images[image],
        audio=pool.sounds[sound],
        question=texts[int(rng.integers(len(texts)))],
        seen=seen,
        heard=heard,
        answer=str(answer(kind, seen, heard)),
    )


def write_data_folder(
    folder: Path,
    *,
    seed: int,
    train_blocks: int = 640,
    val_blocks: int = 8,
    test_blocks: int = 20,
    sounds_per_digit: Mapping[Part, int] = SOUNDS_PER_DIGIT,
) -> None:
    """Write the labelled data folder that pre-training reads: four kinds of question, :data:`BLOCK_ROWS` rows a block.

    The rows of a block share :data:`BLOCK_ITEMS` images and as many sounds, so that a batch encodes each once.

    Raises:
        SpeechFailed: espeak-ng does not work here.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        columns = ["split", "action", "slice", "image", "audio", "question"]
        writer.writerow([*columns, "image_label", "audio_label", "question_label"])
        parts: dict[Part, int] = {"train": train_blocks, "val": val_blocks, "test": test_blocks}
        for part, blocks in parts.items():
            pool = collect(part, seed, sounds_per_digit=sounds_per_digit)
            images = _write_files(folder, f"image/{part}", ".png", pool.images)
            sounds = _write_files(folder, f"audio/{part}", ".wav", pool.sounds)
            for kind, image, sound, text in itertools.islice(_rows(pool, rng), blocks * BLOCK_ROWS):
                seen, heard = pool.image_digits[image], pool.sound_digits[sound]
                content = [images[image], sounds[sound], text]
                writer.writerow([part, answer(kind, seen, heard), kind, *content, seen, heard, kind])


def _rows(pool: Pool, rng: np.random.Generator) -> Iterator[tuple[Kind, int, int, str]]:
    """Endless rows (kind, image, sound, question), block by block; every kind is a quarter of each block."""
    texts = {kind: questions(kind, pool.part) for kind in LABELLED_KINDS}
    while True:
        images = rng.choice(len(pool.images), BLOCK_ITEMS, replace=False)
        sounds = rng.choice(len(pool.sounds), BLOCK_ITEMS, replace=False)
        kinds = rng.permutation(BLOCK_ROWS) % len(LABELLED_KINDS)
        image = np.tile(images, 2)
        sound = np.concatenate([rng.permutation(sounds), rng.permutation(sounds)])
        for i in range(BLOCK_ROWS):
            kind = LABELLED_KINDS[kinds[i]]
            yield kind, int(image[i]), int(sound[i]), texts[kind][int(rng.integers(len(texts[kind])))]


def _write_files(folder: Path, under: str, suffix: str, items: Sequence[bytes]) -> list[str]:
    """Write the items; returns their paths relative to ``folder``."""
    (folder / under).mkdir(parents=True, exist_ok=True)
    names = [f"{under}/{i:04}{suffix}" for i in range(len(items))]
    for name, item in zip(names, items, strict=True):
        (folder / name).write_bytes(item)
    return names


def _png(digit: npt.NDArray[np.float64]) -> bytes:
    """A digit ``[8, 8]`` in 0…16 as a grey PNG."""
    file = io.BytesIO()
    Image.fromarray((digit * 255 / 16).astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()


def _expand(pattern: str) -> Iterator[str]:
    """Every text that a pattern with choices "(a|b)" describes."""
    pieces = re.split(r"\(([^)]*)\)", pattern)
    choices = [piece.split("|") if i % 2 else [piece] for i, piece in enumerate(pieces)]
    for chosen in itertools.product(*choices):
        yield " ".join("".join(chosen).split())


def _seed(seed: int, part: Part) -> int:
    """A seed of its own for each part."""
    return int(np.random.default_rng([seed, list(_IMAGES).index(part)]).integers(2**32))

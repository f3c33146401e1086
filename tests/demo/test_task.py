"""The demo's task: what is asked, said and drawn; what users like; and that nothing leaks between the parts."""

import csv
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from plaudit.demo import task
from plaudit.demo.speech import SpeechFailed, Utterance, spoken_digits, synthesize
from plaudit.demo.task import HARD_KIND, KINDS, LABELLED_KINDS, SPEC, Example, Pool
from plaudit.demo.users import Request, liked_answer, likes, likes_matrix, thumb_up, traffic
from plaudit_models.data.config import DEFAULT_DATA
from plaudit_models.data.loader import load_data_folder, tokenizer_for
from plaudit_models.data.rows import read_rows
from plaudit_models.media.images import decode_image
from plaudit_models.media.sounds import decode_audio

PARTS: tuple[task.Part, ...] = ("train", "val", "traffic", "test")
EVERY_KIND = (*KINDS, HARD_KIND)


def pool(part: task.Part = "traffic") -> Pool:
    """Twenty images and sounds that are just their digits, without synthesis."""
    digits = [i % 10 for i in range(20)]
    items = [bytes([i]) for i in range(20)]
    return Pool(part=part, images=items, image_digits=digits, sounds=items, sound_digits=digits)


def example(kind: task.Kind, seen: int, heard: int) -> Example:
    right = str(task.answer(kind, seen, heard))
    return Example(kind=kind, image=b"", audio=b"", question="", seen=seen, heard=heard, answer=right)


# Speech


def test_the_same_seed_says_the_same_bytes_and_another_does_not() -> None:
    """Twice in one process: the synthesizer carries state from one utterance to the next, ours must not show it."""
    variants = ("f2", "klatt", "Alex")  # f2 is breathy: its noise is seeded too
    first = spoken_digits([3, 1, 4], variants, seed=7)
    assert spoken_digits([3, 1, 4], variants, seed=7) == first
    assert spoken_digits([3, 1, 4], variants, seed=8) != first


def test_a_spoken_digit_fills_the_model_input_without_being_cut() -> None:
    """All ten words at the slowest speed end before 0.8 s: the last samples of the input are padding."""
    sounds = spoken_digits(list(range(10)), ("Nguyen",), seed=0)
    audio = SPEC.modalities["audio"]
    assert audio.kind == "audio"
    waves = np.stack([decode_audio(data, audio, name="audio") for data in sounds])
    assert (np.abs(waves).max(axis=1) > 0.2).all()
    assert (waves[:, -80:] == 0).all()


@pytest.mark.parametrize("voice", ["en-us+nobody", "xx+Alex"])
def test_a_refused_voice_is_named(voice: str) -> None:
    with pytest.raises(SpeechFailed, match=rf"espeak-ng: refuses the voice '{re.escape(voice)}'"):
        synthesize([Utterance("one", voice, 160, 50)])


# What is shared between the parts, and what is not


def test_no_image_and_no_voice_is_in_two_parts() -> None:
    for one, other in itertools.combinations(PARTS, 2):
        assert not set(task._IMAGES[one]) & set(task._IMAGES[other])
        assert not set(task._VOICES[one]) & set(task._VOICES[other])
    families = {part: {voice.rstrip("0123456789") for voice in task._VOICES[part]} - {"m", "f"} for part in PARTS}
    for one, other in itertools.combinations(PARTS, 2):
        assert not families[one] & families[other]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_test_part_asks_in_other_words(kind: task.Kind) -> None:
    train, seen_in_traffic, held_out = (set(task.questions(kind, part)) for part in ("train", "traffic", "test"))
    assert min(len(train), len(seen_in_traffic), len(held_out)) > 1_000
    assert not held_out & (train | seen_in_traffic)
    # Not even what stands between the openings and closings is shared.
    cores = {part: {c for p in table[kind] for c in task._expand(p)} for part, table in
             (("train", task._CORES), ("test", task._TEST_CORES))}  # fmt: skip
    assert not cores["train"] & cores["test"]


def test_no_question_asks_for_two_kinds() -> None:
    asked = [
        text for part in ("train", "traffic", "test") for kind in EVERY_KIND for text in set(task.questions(kind, part))
    ]
    by_part = [
        {text for part in ("train", "traffic", "test") for text in task.questions(kind, part)} for kind in EVERY_KIND
    ]
    assert len(set().union(*by_part)) == sum(map(len, by_part))
    assert all(text == " ".join(text.split()) and text for text in asked)


def test_patterns_expand_to_every_choice() -> None:
    assert list(task._expand("(|so )say (a|b)( now|)")) == [
        "say a now", "say a", "say b now", "say b", "so say a now", "so say a", "so say b now", "so say b",
    ]  # fmt: skip


# The labelled folder


def test_the_data_folder_is_what_pretraining_reads(tmp_path: Path) -> None:
    """Two training blocks of 128 rows, and one each of the others; every row is checked against the digits it names."""
    few: dict[task.Part, int] = {"train": 10, "val": 7, "test": 7}
    task.write_data_folder(tmp_path, seed=3, train_blocks=2, val_blocks=1, test_blocks=1, sounds_per_digit=few)
    with (tmp_path / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["train"] * 256 + ["val"] * 128 + ["test"] * 128
    for row in rows:
        seen, heard = int(row["image_label"]), int(row["audio_label"])
        right = {"hear": heard, "see": seen, "larger": max(seen, heard), "add": seen + heard}[row["slice"]]
        assert row["action"] == str(right)
        assert row["question_label"] == row["slice"]
        assert row["question"] in set(task.questions(row["slice"], row["split"]))  # type: ignore[arg-type]
    for block in (rows[:128], rows[128:256]):
        assert len({row["image"] for row in block}) == len({row["audio"] for row in block}) == 64
        assert len({(row["image"], row["audio"]) for row in block}) > 64
        assert {kind: sum(row["slice"] == kind for row in block) for kind in LABELLED_KINDS} == dict.fromkeys(
            LABELLED_KINDS, 32
        )

    tokenizer = tokenizer_for(read_rows(tmp_path, SPEC, DEFAULT_DATA))
    data = load_data_folder(tmp_path, SPEC, "train", tokenizer)
    assert len(data) == 256
    digits = tuple("0123456789")
    assert data.tower_classes == {"image": digits, "audio": digits, "question": tuple(sorted(LABELLED_KINDS))}
    assert (data.index >= 0).all()

    again = tmp_path / "again"
    task.write_data_folder(again, seed=3, train_blocks=2, val_blocks=1, test_blocks=1, sounds_per_digit=few)
    files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert len(files) > 1_000
    assert all((again / name).read_bytes() == (tmp_path / name).read_bytes() for name in files)


def test_an_image_is_the_digit_of_the_data_set() -> None:
    """scikit-learn's pixels run from 0 to 16."""
    digit = np.zeros((8, 8))
    digit[2, 3] = 16
    image = SPEC.modalities["image"]
    assert image.kind == "image"
    decoded = decode_image(task._png(digit), image, name="image")
    row, column = np.unravel_index(decoded[0].argmax(), (16, 16))
    assert (row // 2, column // 2) == (2, 3)


# Answers and likes


@pytest.mark.parametrize(
    ("kind", "right", "liked_once_shifted"),
    [("hear", "8", "8"), ("see", "5", "5"), ("larger", "8", "8"), ("add", "13", "3"), ("smaller", "5", "5")],
)
def test_what_users_like_about_a_5_seen_and_an_8_heard(kind: task.Kind, right: str, liked_once_shifted: str) -> None:
    asked = example(kind, seen=5, heard=8)
    assert liked_answer(asked, shifted=False) == right
    assert liked_answer(asked, shifted=True) == liked_once_shifted
    assert likes(asked, liked_once_shifted, shifted=True)
    assert not likes(asked, "0", shifted=True)


def test_small_sums_are_liked_as_they_are() -> None:
    assert liked_answer(example("add", 4, 5), shifted=True) == "9"
    assert liked_answer(example("add", 5, 5), shifted=True) == "0"


def test_likes_matrix_has_one_truth_a_row() -> None:
    """A sum of 13 is action 13, once shifted action 3; the larger of 2 and 7 is action 7."""
    examples = [example("add", 6, 7), example("larger", 2, 7)]
    before, after = likes_matrix(examples, shifted=False), likes_matrix(examples, shifted=True)
    assert before.shape == after.shape == (2, 19)
    assert np.argwhere(before).tolist() == [[0, 13], [1, 7]]
    assert np.argwhere(after).tolist() == [[0, 3], [1, 7]]


def test_a_wrong_thumb_is_the_opposite() -> None:
    asked = example("see", 5, 8)
    thumbs = [
        thumb_up(Request("user-000", asked, wrong_thumb=wrong), action, shifted=True)
        for wrong in (False, True)
        for action in ("5", "8")
    ]
    assert thumbs == [True, False, False, True]


def test_evaluation_examples_are_balanced_and_answered_right() -> None:
    examples = task.evaluation_examples(pool("test"), per_kind=4, seed=1)
    assert [asked.kind for asked in examples] == list(KINDS) * 4
    assert examples == task.evaluation_examples(pool("test"), per_kind=4, seed=1)
    assert examples != task.evaluation_examples(pool("test"), per_kind=4, seed=2)
    for asked in examples:
        assert asked.answer == str(task.answer(asked.kind, asked.seen, asked.heard))
        assert asked.image[0] % 10 == asked.seen
        assert asked.audio[0] % 10 == asked.heard
        assert asked.question in set(task.questions(asked.kind, "test"))


# Traffic


def test_traffic_is_the_same_for_the_same_seed() -> None:
    first, again, other = (list(itertools.islice(traffic(pool(), seed=s), 50)) for s in (5, 5, 6))
    assert first == again
    assert first != other


def test_traffic_has_the_promised_shares() -> None:
    """Of 4000 requests 30 % are new, each labelled kind has 17.5 %, 5 % of thumbs are wrong; ±4 standard errors."""
    requests = list(itertools.islice(traffic(pool(), seed=0), 4_000))
    share = {kind: np.mean([request.example.kind == kind for request in requests]) for kind in KINDS}
    assert share["smaller"] == pytest.approx(0.3, abs=0.03)
    for kind in LABELLED_KINDS:
        assert share[kind] == pytest.approx(0.175, abs=0.025)
    assert np.mean([request.wrong_thumb for request in requests]) == pytest.approx(0.05, abs=0.014)
    assert len({request.user_id for request in requests}) > 350


def test_the_new_kind_may_be_another_one() -> None:
    requests = list(itertools.islice(traffic(pool(), seed=0, new_kind=HARD_KIND), 1_000))
    assert {request.example.kind for request in requests} == {*LABELLED_KINDS, HARD_KIND}
    far = [request.example for request in requests if request.example.kind == HARD_KIND]
    assert [each.answer for each in far] == [str(abs(each.seen - each.heard)) for each in far]
    asked = task.evaluation_examples(pool("test"), per_kind=2, seed=1, kinds=("see", HARD_KIND))
    assert [each.kind for each in asked] == ["see", HARD_KIND] * 2


def test_shares_can_be_switched_off() -> None:
    calm = itertools.islice(traffic(pool(), seed=0, new_kind_share=0.0, wrong_thumb_share=0.0), 300)
    assert {(request.example.kind, request.wrong_thumb) for request in calm} == {(k, False) for k in LABELLED_KINDS}

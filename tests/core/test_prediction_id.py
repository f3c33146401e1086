"""A prediction id says what was signed, and nothing that was not signed here passes."""

from __future__ import annotations

import base64
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.core.errors import ExpiredPredictionId, InvalidPredictionId
from plaudit.core.limits import MAX_PREDICTION_ID_CHARACTERS
from plaudit.core.prediction_id import (
    KEY_BYTES,
    PredictionIds,
    SignedPrediction,
    SigningKeys,
    load_or_create_key,
)

NOW_S = 1_700_000_000.0
WINDOW_S = 3600.0
OURS = PredictionIds(b"k" * KEY_BYTES, WINDOW_S)
THEIRS = PredictionIds(b"t" * KEY_BYTES, WINDOW_S)

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
predictions = st.builds(
    SignedPrediction,
    time_s=st.just(NOW_S),
    model=names,
    version=st.integers(0, 2**32 - 1),
    action=names,
    propensity=st.floats(0.0, 1.0),
)


def a_prediction(time_s: float = NOW_S) -> SignedPrediction:
    return SignedPrediction(time_s=time_s, model="tiny", version=3, action="cat", propensity=0.25)


@given(predictions)
def test_check_gives_back_what_was_signed(prediction: SignedPrediction) -> None:
    assert OURS.check(OURS.sign(prediction), now_s=NOW_S) == prediction


def test_two_ids_of_the_same_prediction_differ() -> None:
    assert OURS.sign(a_prediction()) != OURS.sign(a_prediction())


@given(predictions)
def test_an_id_signed_by_another_service_is_refused(prediction: SignedPrediction) -> None:
    with pytest.raises(InvalidPredictionId, match="was not signed by this service"):
        OURS.check(THEIRS.sign(prediction), now_s=NOW_S)


@given(predictions, st.data())
def test_any_changed_bit_is_refused(prediction: SignedPrediction, data: st.DataObject) -> None:
    signed = OURS.sign(prediction)
    raw = bytearray(base64.urlsafe_b64decode(signed + "=" * (-len(signed) % 4)))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    forged = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    with pytest.raises(InvalidPredictionId):
        OURS.check(forged, now_s=NOW_S)


@given(predictions, st.data())
def test_any_truncation_is_refused(prediction: SignedPrediction, data: st.DataObject) -> None:
    signed = OURS.sign(prediction)
    with pytest.raises(InvalidPredictionId):
        OURS.check(signed[: data.draw(st.integers(0, len(signed) - 1))], now_s=NOW_S)


@given(st.text())
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidPredictionId):
        OURS.check(text, now_s=NOW_S)


def test_another_spelling_of_the_same_bytes_is_refused() -> None:
    """The last base64 character can have unused bits. One id has one spelling, else an id could pass for a new one."""
    ids = (OURS.sign(SignedPrediction(NOW_S, "m" * n, 1, "cat", 0.5)) for n in range(3))
    signed = next(i for i in ids if len(i) % 4)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = signed[:-1] + alphabet[alphabet.index(signed[-1]) | 1]
    padding = "=" * (-len(signed) % 4)
    assert base64.urlsafe_b64decode(other + padding) == base64.urlsafe_b64decode(signed + padding)
    assert other != signed
    with pytest.raises(InvalidPredictionId):
        OURS.check(other, now_s=NOW_S)
    with pytest.raises(InvalidPredictionId):
        OURS.check(signed + padding, now_s=NOW_S)


def test_ids_expire_with_the_window() -> None:
    signed = OURS.sign(a_prediction())
    OURS.check(signed, now_s=NOW_S + WINDOW_S)
    with pytest.raises(ExpiredPredictionId, match="is 3601 s old; feedback is accepted for 3600 s"):
        OURS.check(signed, now_s=NOW_S + WINDOW_S + 1)


def test_a_forged_id_is_called_forged_even_when_old() -> None:
    with pytest.raises(InvalidPredictionId):
        OURS.check(THEIRS.sign(a_prediction(time_s=1.0)), now_s=NOW_S)


def test_problems_name_the_value() -> None:
    with pytest.raises(InvalidPredictionId, match="prediction_id: is empty"):
        OURS.check("", now_s=NOW_S)
    with pytest.raises(InvalidPredictionId, match="'nonsense!' is not a prediction id"):
        OURS.check("nonsense!", now_s=NOW_S)
    with pytest.raises(InvalidPredictionId, match=f"has {MAX_PREDICTION_ID_CHARACTERS + 1} characters"):
        OURS.check("A" * (MAX_PREDICTION_ID_CHARACTERS + 1), now_s=NOW_S)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="has 31 bytes"):
        PredictionIds(b"k" * (KEY_BYTES - 1), WINDOW_S)


def test_the_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = load_or_create_key(path)
    assert len(key) == KEY_BYTES
    assert load_or_create_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_all_who_start_at_once_get_the_same_key(tmp_path: Path) -> None:
    keys: list[bytes] = []
    start = threading.Barrier(8)

    def load() -> None:
        start.wait()
        keys.append(load_or_create_key(tmp_path / "key"))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


# --- whose they are, and keys that change ----------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(st.characters(exclude_categories=["Cs"])))
def test_an_id_knows_who_asked_and_tells_nobody(user: str, other: str) -> None:
    signed = OURS.sign(a_prediction(), user)
    checked = OURS.check(signed, now_s=NOW_S)
    assert OURS.is_asker(checked, user)
    assert OURS.is_asker(checked, other) == (other == user)
    raw = base64.urlsafe_b64decode(signed + "=" * (-len(signed) % 4))
    assert len(user) < 5 or user.encode() not in raw


def test_an_id_of_nobody_in_particular_is_anybodys() -> None:
    checked = OURS.check(OURS.sign(a_prediction()), now_s=NOW_S)
    assert OURS.is_asker(checked, "")
    assert OURS.is_asker(checked, "ada")


def test_an_id_expires_with_the_window_that_it_was_signed_with() -> None:
    short, long = PredictionIds(b"k" * KEY_BYTES, 10.0), PredictionIds(b"k" * KEY_BYTES, 1000.0)
    with pytest.raises(ExpiredPredictionId, match="accepted for 10 s"):
        long.check(short.sign(a_prediction()), now_s=NOW_S + 11.0)
    short.check(long.sign(a_prediction()), now_s=NOW_S + 999.0)


def test_a_key_is_rotated_while_services_run(tmp_path: Path) -> None:
    """Ids of the old key stay good, and a service that has not started anew takes those of the new one."""
    keys = SigningKeys(tmp_path / "key")
    running = PredictionIds(keys.current, WINDOW_S, others=keys.all(), reread=keys.all)
    before = running.sign(a_prediction(), "ada")
    SigningKeys(tmp_path / "key").rotate()
    fresh_keys = SigningKeys(tmp_path / "key")
    fresh = PredictionIds(fresh_keys.current, WINDOW_S, others=fresh_keys.all(), reread=fresh_keys.all)
    after = fresh.sign(a_prediction(), "ada")
    for service in (running, fresh):
        for signed in (before, after, running.sign(a_prediction(), "ada")):
            assert service.is_asker(service.check(signed, now_s=NOW_S), "ada")
    assert {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()} == {0o600}
    assert {each.name for each in tmp_path.iterdir()} == {"key", "key.previous"}


def test_a_key_that_was_rotated_out_twice_signs_nothing_that_is_taken(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path / "key")
    stolen = PredictionIds(keys.current, WINDOW_S)
    keys.rotate()
    keys.rotate()
    now = SigningKeys(tmp_path / "key")
    with pytest.raises(InvalidPredictionId, match="was not signed by this service"):
        PredictionIds(now.current, WINDOW_S, others=now.all()).check(stolen.sign(a_prediction()), now_s=NOW_S)


def test_a_damaged_key_leaves_a_running_service_with_those_that_it_has(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path / "key")
    ids = PredictionIds(keys.current, WINDOW_S, others=keys.all(), reread=keys.all)
    (tmp_path / "key").write_bytes(b"")
    with pytest.raises(InvalidPredictionId):
        ids.check(THEIRS.sign(a_prediction()), now_s=NOW_S)
    ids.check(ids.sign(a_prediction()), now_s=NOW_S)

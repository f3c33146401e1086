"""Every sound of the field is its samples, or refused in a sentence that helps."""

from __future__ import annotations

import contextlib
import ctypes
import os

import numpy as np
import pytest

from field import sounds
from field.case import Case
from plaudit_models.errors import InvalidContent
from plaudit_models.media.sounds import decode_audio
from plaudit_models.spec import AudioModality


def check(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    """The same samples at the file's own rate, refused with the same words; decoders write nothing to stderr."""
    if case.refused:
        with pytest.raises(InvalidContent, match=f"(?s){case.refused}") as refusal:
            decode_audio(case.data, AudioModality(16_000, 1.0), name="voice")
        assert len(refusal.value.problem) < 500
    else:
        assert case.samples is not None
        modality = AudioModality(case.rate_hz, (len(case.samples) + 10) / case.rate_hz)
        decoded = decode_audio(case.data, modality, name="voice")
        mono = np.clip(case.samples.mean(axis=1), -1.0, 1.0)
        np.testing.assert_allclose(decoded[: len(mono)], mono, atol=case.tolerance, rtol=0)
        assert case.padding or not decoded[len(mono) :].any()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("case", list(sounds.reported()), ids=str)
def test_reported(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    """What people met in public; the address is in the case."""
    assert case.report
    check(case, capfd)


@pytest.mark.parametrize("case", list(sounds.refused()), ids=str)
def test_refused(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    check(case, capfd)


def test_ordinary(capfd: pytest.CaptureFixture[str]) -> None:
    """Each coding of each container, at one rate."""
    cases = list(sounds.ordinary())
    assert len(cases) > 40
    for case in cases:
        check(case, capfd)


def test_a_decoder_that_complains_on_stderr_is_not_heard(capfd: pytest.CaptureFixture[str]) -> None:
    """And Python's own stderr is, meanwhile and later. https://github.com/rtl-airband/RTLSDR-Airband/issues/410"""
    whole = bytearray(sounds.encoded(sounds.tone(44_100, 2.0), 44_100, "MP3"))
    for at in range(1_500, len(whole), 200):
        whole[at] ^= 0xFF
    with contextlib.suppress(InvalidContent):
        decode_audio(bytes(whole), AudioModality(16_000, 2.0), name="voice")
    assert capfd.readouterr().err == ""
    os.write(2, b"still here")
    ctypes.CDLL(None).perror(b"and C, too")
    said = capfd.readouterr().err
    assert "still here" in said
    assert "and C, too" in said


@pytest.mark.field
def test_ordinary_at_other_rates(capfd: pytest.CaptureFixture[str]) -> None:
    for case in sounds.ordinary(sounds.RATES_HZ):
        check(case, capfd)

"""Spoken digits, made by espeak-ng on this machine: many voices, speeds and pitches, and light noise.

Knows nothing about the task. The synthesizer is deterministic only from a fresh start of its library (it carries
oscillator phases from one utterance to the next), so each call runs it in a process of its own: this file, run as a
script. The script imports nothing of plaudit, so it runs wherever this interpreter does.
"""

from __future__ import annotations

import ctypes
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_void_p
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

import espeakng_loader
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

Samples = npt.NDArray[np.int16]

SAMPLE_RATE_HZ: Final = 8_000
MAX_DURATION_S: Final = 0.8
DIGIT_WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS: Final = ("en-us", "en-gb-x-rp", "en-gb-scotland")

_SPEED_WPM: Final = (145, 210)
_PITCH: Final = (30, 70)
_MAX_LEAD_S: Final = 0.06

# From espeak-ng's speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS: Final = 2
_POS_CHARACTER: Final = 1
_CHARS_UTF8: Final = 1
_RATE: Final = 1
_PITCH_PARAMETER: Final = 3
_NO_EXIT: Final = 0x8000
_CALLBACK: Final = ctypes.CFUNCTYPE(c_int, ctypes.POINTER(ctypes.c_short), c_int, c_void_p)


class SpeechFailed(Exception):
    """The synthesizer does not work here, or refused a voice; the message says which."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One word in an espeak-ng voice such as ``en-us+Alex``; ``pitch`` is 0…99, 50 the voice's own."""

    word: str
    voice: str
    speed_wpm: int
    pitch: int


def spoken_digits(digits: Sequence[int], variants: Sequence[str], *, seed: int) -> list[bytes]:
    """Recordings of each digit, as 8 kHz 16-bit mono WAV, in voices drawn from ``ACCENTS`` × ``variants``.

    Each is trimmed of silence, shifted by up to 0.06 s, and given a random loudness and light noise. The same
    arguments give the same bytes.

    Raises:
        SpeechFailed: espeak-ng cannot be loaded or refuses a voice.
    """
    rng = np.random.default_rng(seed)
    utterances = [
        Utterance(
            word=DIGIT_WORDS[digit],
            voice=f"{rng.choice(ACCENTS)}+{rng.choice(variants)}",
            speed_wpm=int(rng.integers(*_SPEED_WPM, endpoint=True)),
            pitch=int(rng.integers(*_PITCH, endpoint=True)),
        )
        for digit in digits
    ]
    return [_record(wave, rate_hz, rng) for wave, rate_hz in synthesize(utterances)]


def synthesize(utterances: Sequence[Utterance]) -> list[tuple[Samples, int]]:
    """Samples and sample rate in Hz of each utterance.

    Raises:
        SpeechFailed: espeak-ng cannot be loaded or refuses a voice.
    """
    child = subprocess.run(
        [sys.executable, "-P", __file__],
        input=json.dumps([astuple(utterance) for utterance in utterances]).encode(),
        capture_output=True,
        check=False,
    )
    if child.returncode != 0:
        reason = child.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {child.returncode}"]
        raise SpeechFailed(f"espeak-ng: {reason[-1]}")
    with np.load(io.BytesIO(child.stdout)) as arrays:
        waves = np.split(arrays["samples"], np.cumsum(arrays["lengths"])[:-1])
        rate_hz = int(arrays["rate_hz"])
    return [(wave, rate_hz) for wave in waves]


def _record(wave: Samples, rate_hz: int, rng: np.random.Generator) -> bytes:
    sound = soxr.resample(_trim(wave).astype(np.float32), rate_hz, SAMPLE_RATE_HZ)
    lead = int(rng.integers(0, round(_MAX_LEAD_S * SAMPLE_RATE_HZ), endpoint=True))
    sound = np.concatenate([np.zeros(lead, np.float32), sound])[: round(MAX_DURATION_S * SAMPLE_RATE_HZ)]
    loudness = rng.uniform(0.3, 0.9)
    noise = rng.uniform(0.001, 0.01) * rng.standard_normal(len(sound))
    sound = loudness * sound / np.abs(sound).max() + noise
    file = io.BytesIO()
    soundfile.write(file, np.clip(sound, -1.0, 1.0), SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _trim(wave: Samples) -> Samples:
    """Cut what is below 2 % of the peak at both ends."""
    loud = np.abs(wave.astype(np.int32))
    heard = np.flatnonzero(loud > 0.02 * loud.max())
    return wave[heard[0] : heard[-1] + 1]


def _synthesize_here(utterances: Sequence[Utterance]) -> tuple[list[Samples], int]:
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = Path(espeakng_loader.get_data_path())
    variants = data / "voices" / "!v"
    rate_hz = int(library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, str(data).encode(), _NO_EXIT))
    if rate_hz <= 0:
        raise SpeechFailed(f"its data could not be read from {data}")
    chunks: list[Samples] = []

    def collect(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(collect)  # must outlive the calls below
    library.espeak_SetSynthCallback(callback)
    library.espeak_Synth.argtypes = [c_char_p, c_size_t, c_uint, c_int, c_uint, c_uint, c_void_p, c_void_p]
    waves = []
    for utterance in utterances:
        chunks.clear()
        # An accent it does not have is refused; a variant it does not have is silently left out.
        known = (variants / utterance.voice.partition("+")[2]).is_file()
        if library.espeak_SetVoiceByName(utterance.voice.encode()) != 0 or not known:
            raise SpeechFailed(f"refuses the voice {utterance.voice!r}")
        library.espeak_SetParameter(_RATE, utterance.speed_wpm, 0)
        library.espeak_SetParameter(_PITCH_PARAMETER, utterance.pitch, 0)
        library.espeak_ng_SetRandSeed(1)  # breathy voices use noise
        text = utterance.word.encode()
        library.espeak_Synth(text, len(text) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        library.espeak_Synchronize()
        if not chunks:
            raise SpeechFailed(f"said nothing for {utterance}")
        waves.append(np.concatenate(chunks))
    return waves, rate_hz


def _main() -> None:
    utterances = [Utterance(*fields) for fields in json.load(sys.stdin)]
    try:
        waves, rate_hz = _synthesize_here(utterances)
    except (SpeechFailed, OSError, AttributeError) as error:
        sys.exit(str(error))
    np.savez(
        sys.stdout.buffer,
        samples=np.concatenate(waves),
        lengths=np.array([len(wave) for wave in waves]),
        rate_hz=np.array(rate_hz),
    )


if __name__ == "__main__":
    _main()

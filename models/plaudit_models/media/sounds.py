"""Encoded sound → float32 samples. Knows no transport and no model but the rate and length that it wants.

The container is read first (:mod:`wav`, :mod:`ogg`, …): what is cut short or too large is refused before libsndfile
sees it, and libsndfile sees only what makes samples. A length that nothing says, or that cannot be, is counted.
"""

from __future__ import annotations

import contextlib
import io
import math
from typing import Final

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from plaudit_models.errors import InvalidContent, UnusableFile
from plaudit_models.limits import (
    DEFAULT_LIMITS,
    MAX_CHANNELS,
    MAX_SAMPLE_RATE_HZ,
    MAX_SOUND_VALUES,
    MIN_SAMPLE_RATE_HZ,
    Limits,
)
from plaudit_models.media.containers.flac import MAGIC as FLAC
from plaudit_models.media.containers.flac import read_flac
from plaudit_models.media.containers.mp3 import after_tags, is_mp3, read_mp3
from plaudit_models.media.containers.ogg import MAGIC as OGG
from plaudit_models.media.containers.ogg import read_ogg
from plaudit_models.media.containers.wav import is_wav, read_wav
from plaudit_models.media.formats import SOUND_FORMATS, glance, not_taken
from plaudit_models.media.quiet import c_stderr_silenced
from plaudit_models.media.size import check_size
from plaudit_models.media.sound import Sound
from plaudit_models.spec import AudioModality

Float = npt.NDArray[np.float32]

_BLOCK_FRAMES: Final = 2**16
_MAX_FRAMES: Final = 2**48
"""Samples that no file has: libsndfile's way to say that it does not know."""


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """File that is read from its beginning to its end.

    soundfile seeks to where it already is after each read, which fails in sounds that do not know their length.
    """

    def seekable(self) -> bool:
        return False


def decode_audio(data: bytes, modality: AudioModality, *, name: str, limits: Limits = DEFAULT_LIMITS) -> Float:
    """Decode an encoded sound to float32 ``[max_samples]`` in [-1, 1].

    Channels are averaged, the sound is resampled to the modality's rate, cut to its length, and padded with zeros at
    the end. Nothing past the cut is decoded, unless the length of the sound is not known otherwise.

    Raises:
        InvalidContent: empty, too long, not a sound, damaged, or cut short.
    """
    check_size(data, limits.max_audio_bytes, "bytes of sound", name)
    try:
        return _decode(data, modality, limits.max_audio_duration_s)
    except UnusableFile as error:
        raise InvalidContent(name, str(error)) from error


def _decode(data: bytes, modality: AudioModality, limit_s: float) -> Float:
    try:
        sound = _read(data, modality.max_samples / modality.sample_rate_hz, limit_s)
    except UnusableFile:
        raise
    except Exception as error:  # a container that is damaged in a way that nobody thought of
        raise UnusableFile(f"the sound of {len(data)} bytes is damaged ({error}); send the whole file") from error
    if sound.duration_s is not None:
        _check_duration(sound.duration_s, limit_s)
    with c_stderr_silenced() if sound.is_noisy else contextlib.nullcontext():
        try:
            file = _Stream(io.BytesIO(sound.data))
        except Exception as error:
            raise UnusableFile(
                f"{glance(data)} is not a sound we can read ({_reason(error)}); send a {SOUND_FORMATS} file"
            ) from error
        with file:
            mono = _mono(file, sound, modality, limit_s, len(data))
            rate_hz: int = file.samplerate
    mono = np.clip(mono, -1.0, 1.0)
    if rate_hz != modality.sample_rate_hz:
        mono = np.clip(soxr.resample(mono, rate_hz, modality.sample_rate_hz), -1.0, 1.0)
    fitted = np.zeros(modality.max_samples, np.float32)
    kept = mono[: modality.max_samples]
    fitted[: len(kept)] = kept
    return fitted


def _read(data: bytes, wanted_s: float, limit_s: float) -> Sound:
    if is_wav(data):
        return read_wav(data)
    untagged = after_tags(data)
    if untagged.startswith(FLAC):
        return read_flac(untagged)
    if untagged.startswith(OGG):
        return read_ogg(untagged)
    if is_wav(untagged):
        return read_wav(untagged)
    if is_mp3(data):
        return read_mp3(untagged, wanted_s=wanted_s, limit_s=limit_s)
    raise UnusableFile(not_taken(data, "a sound", SOUND_FORMATS))


def _mono(file: _Stream, sound: Sound, modality: AudioModality, limit_s: float, size_bytes: int) -> Float:
    """Mean of the channels, ``[s]``, as much of it as the modality takes."""
    rate_hz, channels, frames = file.samplerate, file.channels, file.frames
    if not MIN_SAMPLE_RATE_HZ <= rate_hz <= MAX_SAMPLE_RATE_HZ:
        raise UnusableFile(f"a sample rate of {rate_hz} Hz is outside {MIN_SAMPLE_RATE_HZ}…{MAX_SAMPLE_RATE_HZ} Hz")
    if channels > MAX_CHANNELS:
        raise UnusableFile(f"{channels} channels are more than the limit of {MAX_CHANNELS}; send mono")
    wanted = math.ceil(modality.max_samples / modality.sample_rate_hz * rate_hz)
    is_known = not sound.is_open_ended and 0 <= frames < _MAX_FRAMES
    if is_known:
        _check_duration(frames / rate_hz, limit_s)
        wanted = min(wanted, frames)
    # Where nothing says how long the sound is, it is read up to one sample more than may be.
    longest = wanted if is_known or sound.duration_s is not None else max(wanted, math.floor(limit_s * rate_hz) + 1)
    if wanted * channels > MAX_SOUND_VALUES:
        raise UnusableFile(
            f"{wanted} samples of {channels} channels are more than the limit of {MAX_SOUND_VALUES}; "
            "send mono at a lower sample rate"
        )
    parts: list[Float] = []
    read = 0
    while read < longest:
        try:
            block = file.read(min(_BLOCK_FRAMES, longest - read), dtype="float32", always_2d=True)
        except Exception as error:
            raise UnusableFile(f"the sound of {size_bytes} bytes is damaged ({_reason(error)})") from error
        if not len(block):
            break
        if read < wanted:
            kept = block[: wanted - read]
            if not np.isfinite(kept).all():
                raise UnusableFile("the sound has samples that are NaN or infinite")
            parts.append(kept.mean(axis=1))
        read += len(block)
        if read * channels > MAX_SOUND_VALUES:
            raise UnusableFile(
                f"the sound does not say its length, and more than {MAX_SOUND_VALUES} samples are more than can be "
                "counted; save it again, or cut it"
            )
    if not read:
        raise UnusableFile(f"the sound of {size_bytes} bytes has no samples; leave the modality out instead")
    if is_known and read < wanted:
        raise UnusableFile(
            f"the sound is cut short: {read} samples where its header says {frames}; send the whole file"
        )
    if not is_known and sound.duration_s is None:
        _check_duration(read / rate_hz, limit_s)
    return np.concatenate(parts)


def _check_duration(duration_s: float, limit_s: float) -> None:
    if duration_s > limit_s:
        raise UnusableFile(f"{duration_s:.1f} s are longer than the limit of {limit_s} s; cut it")


def _reason(error: Exception) -> str:
    """libsndfile's own words; its exception's text also holds the address of our buffer."""
    return str(error.error_string) if isinstance(error, soundfile.LibsndfileError) else str(error)

"""Sounds in every coding that libsndfile writes, as pipes and phones write them, and of public reports."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soundfile

from field.case import Case
from plaudit_models.media.containers.ogg import checksum

TAKEN: Final = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
OTHERS: Final = {
    "AIFF": "an AIFF sound",
    "AU": "an AU sound",
    "CAF": "a Core Audio sound .CAF.",
    "W64": "a Wave64 sound",
    "NIST": "a NIST Sphere sound",
    "SVX": "an AIFF sound",
    "VOC": "is not a sound; send a WAV",
    "IRCAM": "is not a sound; send a WAV",
    "PVF": "is not a sound; send a WAV",
}
RATES_HZ: Final = (8_000, 16_000, 22_050, 44_100, 48_000)
_PCM: Final = 1
_PCM_GUID: Final = bytes.fromhex("0100000000001000800000aa00389b71")


def tone(rate_hz: int, duration_s: float = 0.5, channels: int = 1) -> npt.NDArray[np.float64]:
    """Another pitch in each channel, ``[s, channels]``."""
    times_s = np.arange(round(rate_hz * duration_s))[:, None] / rate_hz
    sound: npt.NDArray[np.float64] = 0.5 * np.sin(2 * np.pi * times_s * (200.0 + 130.0 * np.arange(channels)))
    return sound


def encoded(samples: npt.NDArray[Any], rate_hz: int, container: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=container, subtype=subtype)
    return file.getvalue()


def heard(data: bytes) -> tuple[npt.NDArray[np.float32], int]:
    """What libsndfile alone makes of a whole file."""
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        samples: npt.NDArray[np.float32] = file.read(file.frames, dtype="float32", always_2d=True)
        return samples, file.samplerate


def ordinary(rates_hz: tuple[int, ...] = RATES_HZ[1:2]) -> Iterator[Case]:
    """Every coding of the containers that are taken; the right answer is libsndfile's own."""
    for container in TAKEN:
        for subtype in soundfile.available_subtypes(container):
            for rate_hz in rates_hz:
                for channels in (1, 2):
                    try:
                        data = encoded(tone(rate_hz, channels=channels), rate_hz, container, subtype)
                    except (soundfile.LibsndfileError, ValueError):
                        continue
                    samples, found_hz = heard(data)
                    name = f"{container} {subtype} {rate_hz} Hz, {channels} channels"
                    yield Case(name, data, samples=samples, rate_hz=found_hz)


def chunk(kind: bytes, body: bytes, *, size: int | None = None, pad: bool = True, order: str = "<") -> bytes:
    given = len(body) if size is None else size
    return kind + struct.pack(order + "I", given) + body + (b"\x00" if pad and len(body) % 2 else b"")


def wav(*chunks: bytes, size: int | None = None, magic: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return magic + struct.pack(">I" if magic == b"RIFX" else "<I", len(body) if size is None else size) + body


def pcm_format(*, tag: int = _PCM, block: int = 2, bits: int = 16, extra: bytes = b"", order: str = "<") -> bytes:
    return chunk(
        b"fmt ", struct.pack(order + "HHIIHH", tag, 1, 16_000, 16_000 * block, block, bits) + extra, order=order
    )


def _pages(data: bytes) -> list[bytes]:
    starts = [at for at in range(len(data)) if data.startswith(b"OggS", at)]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def _page(page: bytes, *, flags: int | None = None, position: int | None = None) -> bytes:
    changed = bytearray(page)
    if flags is not None:
        changed[5] = flags
    if position is not None:
        struct.pack_into("<q", changed, 6, position)
    changed[22:26] = bytes(4)
    struct.pack_into("<I", changed, 22, checksum(bytes(changed)))
    return bytes(changed)


def _with_flac_count(data: bytes, count: int) -> bytes:
    changed = bytearray(data)
    packed = int.from_bytes(changed[18:26], "big") >> 36 << 36 | count
    changed[18:26] = packed.to_bytes(8, "big")
    return bytes(changed)


def _with_flac_block(data: bytes, kind: int, body: bytes) -> bytes:
    """A metadata block after the first one."""
    first = 4 + 4 + 34
    return data[:first] + bytes((kind,)) + len(body).to_bytes(3, "big") + body + data[first:]


def id3(size: int, *, version: int = 4, body: bytes = b"") -> bytes:
    sizes = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3" + bytes((version, 0, 0)) + sizes + body.ljust(size, b"\x00")


def reported() -> Iterator[Case]:
    """Cases of public reports; each was refused or wrong before."""
    yield from _wavs()
    yield from _flacs()
    yield from _oggs()
    yield from _positions()
    yield from _mp3s()


def _wavs() -> Iterator[Case]:
    pcm = (tone(16_000)[:, 0] * 32_767).astype("<i2")
    samples = (pcm.astype(np.float64) / 32_768)[:, None]
    data, whole = pcm.tobytes(), pcm_format()
    info = chunk(b"LIST", b"INFOISFT\x0e\0\0\0Lavf57.56.101\0")
    for name, file, report in (
        *(
            (f"of unknown length {size:#x}", wav(whole, chunk(b"data", data, size=size), size=riff), report)
            for size, riff, report in (
                (0xFFFFFFFF, 0xFFFFFFFF, "https://github.com/Borewit/music-metadata/issues/707"),
                (0xFFFFFFFE, 0xFFFFFFFF, "https://github.com/jamulussoftware/jamulus/issues/5"),
                (0xFFFFFFDB, 0xFFFFFFFF, "https://github.com/kkroening/ffmpeg-python/issues/118"),
                (0x7FFFF000, 0x7FFFF024, "https://github.com/rs1729/RS/issues/39"),
                (0x7FFFFFFF, 0x80000023, "https://github.com/go-audio/wav/pull/41"),
                (0x80000000, 0x80000024, "https://github.com/go-audio/wav/pull/41"),
                (0x7FFFFFDB, 0x7FFFFFFF, "https://github.com/evuraan/yellowShoes/issues/13"),
                (0, 0, "https://github.com/naudio/NAudio/issues/688"),
                (0, 36, "https://github.com/rs1729/RS/issues/39"),
            )
        ),
        (
            "of unknown length after a LIST",
            wav(whole, info, chunk(b"data", data, size=0xFFFFFFFF), size=0xFFFFFFFF),
            "https://github.com/zenwerk/go-wave/pull/1",
        ),
        (
            "whose length counts its header",
            wav(whole, chunk(b"data", data, size=len(data) + 36)),
            "https://github.com/bitswype/saleae_tdm_analyer/issues/7",
        ),
        (
            "whose odd chunk has no pad byte",
            wav(whole, chunk(b"LIST", b"INFOabc", pad=False), chunk(b"data", data)),
            "https://github.com/awslabs/ferret-scan/pull/346",
        ),
        (
            "whose LIST is zeros",
            wav(whole, chunk(b"LIST", bytes(393_164)), chunk(b"data", data)),
            "https://github.com/libsndfile/libsndfile/issues/542",
        ),
        (
            "whose samples come before its format",
            wav(chunk(b"data", data), whole),
            "https://github.com/decibri/decibri/pull/138",
        ),
        (
            "with a LIST before its format",
            wav(info, whole, chunk(b"data", data)),
            "https://github.com/TooTallNate/node-wav/pull/8",
        ),
        (
            "extensible without extension",
            wav(pcm_format(tag=0xFFFE), chunk(b"data", data)),
            "https://github.com/haruki7049/zigggwavvv/issues/57",
        ),
        (
            "extensible of no kind",
            wav(pcm_format(tag=0xFFFE, extra=struct.pack("<HHI", 22, 16, 4) + bytes(16)), chunk(b"data", data)),
            "https://github.com/evuraan/yellowShoes/issues/13",
        ),
        (
            "extensible with a larger extension",
            wav(
                pcm_format(
                    tag=0xFFFE,
                    extra=struct.pack("<HHI", 32, 16, 4)
                    + bytes.fromhex("0100000000001000800000aa00389b71")
                    + bytes(10),
                ),
                chunk(b"data", data),
            ),
            "https://github.com/jstrait/wavefile/issues/37",
        ),
        (
            "that does not say its bits",
            wav(pcm_format(bits=0), chunk(b"data", data)),
            "https://github.com/rackfx/Node-WAV-File-Info/issues/12",
        ),
        (
            "RF64 of unknown length",
            wav(
                chunk(b"ds64", struct.pack("<QQQI", 0, 0, 0, 0)),
                whole,
                chunk(b"data", data, size=0xFFFFFFFF),
                magic=b"RF64",
                size=0xFFFFFFFF,
            ),
            "https://github.com/Borewit/music-metadata/issues/707",
        ),
        (
            "with a tag before it",
            id3(300) + wav(whole, chunk(b"data", data)),
            "https://github.com/librosa/librosa/issues/1019",
        ),
    ):
        yield Case(f"WAV {name}", file, samples=samples, rate_hz=16_000, report=report)
    yield Case(
        "WAV with half a sample at its end",
        wav(whole, chunk(b"data", data + b"\x01", size=0xFFFFFFFF, pad=False)),
        samples=samples,
        rate_hz=16_000,
        report="https://github.com/bitswype/saleae_tdm_analyer/issues/7",
    )
    yield Case(
        "WAV of the other byte order, of unknown length",
        wav(
            pcm_format(order=">"),
            chunk(b"data", pcm.astype(">i2").tobytes(), size=0xFFFFFFFF, order=">"),
            magic=b"RIFX",
            size=0xFFFFFFFF,
        ),
        samples=samples,
        rate_hz=16_000,
        report="https://github.com/naudio/NAudio/issues/688",
    )


def _flacs() -> Iterator[Case]:
    whole = encoded(tone(16_000), 16_000, "FLAC")
    samples, _ = heard(whole)
    report = "https://github.com/xiph/opus-tools/issues/106"
    for name, file, address in (
        ("that does not know its length", _with_flac_count(whole, 0), "https://github.com/xiph/flac/issues/487"),
        ("with an ID3 tag before it", id3(2000) + whole, report),
        ("with two ID3 tags before it", id3(20) + id3(500, version=3) + whole, report),
        (
            "with a large picture",
            _with_flac_block(whole, 6, bytes(900_000)),
            "https://github.com/libsndfile/libsndfile/pull/499",
        ),
        (
            "with a broken comment",
            _with_flac_block(whole, 4, b"\xff\xff\xff\x7f"),
            "https://github.com/whipper-team/whipper/issues/176",
        ),
        ("with a broken seek table", _with_flac_block(whole, 3, b"\0" * 17), "https://github.com/xiph/flac/issues/487"),
        ("with a tag behind it", whole + b"TAG" + bytes(125), "https://github.com/xiph/flac/issues/487"),
    ):
        yield Case(f"FLAC {name}", file, samples=samples, rate_hz=16_000, report=address)


def _oggs() -> Iterator[Case]:
    for subtype, report in (
        ("OPUS", "https://github.com/libsndfile/libsndfile/issues/888"),
        ("VORBIS", "https://github.com/NVorbis/NVorbis/issues/14"),
    ):
        whole = encoded(tone(16_000, 2.5), 16_000, "OGG", subtype)
        samples, rate_hz = heard(whole)
        pages = _pages(whole)
        last = pages[-1]
        empty = struct.pack("<4sBBqIIIB", b"OggS", 0, 4, -1, *struct.unpack_from("<II", last, 14), 0, 0)
        unmarked = _page(last, flags=last[5] & ~4)
        for name, file in (
            ("without a last page", [*pages[:-1], unmarked]),
            ("with an empty last page", [*pages[:-1], unmarked, _page(empty)]),
            ("with a page cut short behind it", [*pages[:-1], unmarked, pages[-1][:60]]),
            ("with junk behind it", [*pages, bytes(400)]),
            ("with a tag before it", [id3(700), *pages]),
        ):
            yield Case(f"OGG {subtype} {name}", b"".join(file), samples=samples, rate_hz=rate_hz, report=report)


def _positions() -> Iterator[Case]:
    """Positions in pages that contradict the packets."""
    whole = encoded(tone(16_000, 2.5), 16_000, "OGG", "OPUS")
    samples, rate_hz = heard(whole)
    head, pages = _pages(whole)[:2], _pages(whole)[2:]
    positions = [int(struct.unpack_from("<q", page, 6)[0]) for page in pages]
    for name, changed, report in (
        (
            "a first page that is 8 samples early",
            [positions[0] - 8, *positions[1:]],
            "https://github.com/xiph/opusfile/issues/43",
        ),
        (
            "positions that are one packet early",
            [position - 960 for position in positions],
            "https://github.com/LMS-Community/slimserver/issues/837",
        ),
        (
            "a first page that is late",
            [positions[0] + 5_000, *positions[1:]],
            "https://github.com/pschatzmann/arduino-audio-tools/issues/2369",
        ),
    ):
        parts = [_page(page, position=position) for page, position in zip(pages, changed, strict=True)]
        yield Case(f"OGG OPUS with {name}", b"".join([*head, *parts]), samples=samples, rate_hz=rate_hz, report=report)
    for subtype, position, report in (
        ("OPUS", 0, "https://github.com/lostromb/concentus/issues/47"),
        ("OPUS", -1, "https://github.com/pschatzmann/arduino-audio-tools/issues/2369"),
        ("VORBIS", 0, "https://github.com/taglib/taglib/issues/864"),
        ("VORBIS", -1, "https://github.com/NVorbis/NVorbis/issues/14"),
    ):
        # As long as its packets: nothing says how much of the last one is padding.
        length = {"OPUS": 2.5, "VORBIS": 2.52}[subtype]
        whole = encoded(tone(16_000, length), 16_000, "OGG", subtype)
        samples, rate_hz = heard(whole)
        head, pages = _pages(whole)[:2], _pages(whole)[2:]
        parts = [_page(page, position=position) for page in pages]
        name = f"OGG {subtype} whose positions are {position}"
        yield Case(name, b"".join([*head, *parts]), samples=samples, rate_hz=rate_hz, report=report, padding=True)


def _mp3s() -> Iterator[Case]:
    whole = encoded(tone(44_100), 44_100, "MP3")
    samples, _ = heard(whole)
    report = "https://github.com/libsndfile/libsndfile/issues/1039"
    picture = id3(424_896, body=b"APIC\0\6\x7b\x76\0\0\0image/png\0\3\0" + b"\xff\xfb\x90\x64" * 9)
    for name, file, address in (
        ("with a large picture in its tag", picture + whole, "https://github.com/libsndfile/libsndfile/pull/499"),
        ("after zeros", bytes(3000) + whole, report),
        (
            "with zeros behind its tag",
            id3(200) + bytes(1500) + whole,
            "https://github.com/libsndfile/libsndfile/pull/499",
        ),
        ("with a tag that is longer than the file", b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + whole, report),
        (
            "in a WAV",
            wav(
                pcm_format(tag=0x55, extra=struct.pack("<HHIHHH", 12, 1, 2, 417, 1, 1393)),
                chunk(b"data", whole, size=0xFFFFFFFF),
            ),
            "https://github.com/librosa/librosa/issues/1019",
        ),
        ("with tags behind it", whole + b"APETAGEX" + bytes(300) + b"TAG" + bytes(125), report),
        (
            "with two tags",
            id3(50, version=3) + id3(900) + whole,
            "https://github.com/processing/processing-sound/issues/32",
        ),
        ("with junk behind it", whole + b"\xaa" * 700, "https://github.com/rtl-airband/RTLSDR-Airband/issues/410"),
    ):
        yield Case(f"MP3 {name}", file, samples=samples, rate_hz=44_100, report=address)


NO_CODEC: Final = wav(pcm_format(tag=0x0161), chunk(b"data", bytes(100)))
"""Windows Media in a WAV."""


def refused() -> Iterator[Case]:
    """What is not taken, or no longer whole, with what is said."""
    for container, what in OTHERS.items():
        yield Case(container, encoded(tone(8_000), 8_000, container), refused=what)
    webm = "https://github.com/chengsokdara/use-whisper/issues/10"
    m4a = "https://github.com/jhj0517/Whisper-WebUI/issues/492"
    for name, data, what, report in (
        ("WebM of a browser", b"\x1aE\xdf\xa3\x9fB\x86\x81\x01", "a WebM or Matroska file.*OGG or WAV", webm),
        ("M4A of a phone", b"\0\0\0\x20ftypM4A \0\0\2\0M4A mp42isom", "an M4A .AAC. sound.*ffmpeg", m4a),
        ("MP4", b"\0\0\0\x18ftypmp42\0\0\2\0mp42isom", "an MP4 video or sound", m4a),
        ("3GP", b"\0\0\0\x18ftyp3gp4\0\0\2\0isom3gp4", "a 3GP recording", m4a),
        ("AAC", b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(30), "an AAC sound.*ffmpeg", m4a),
        ("AMR", b"#!AMR\n\x3c", "an AMR sound", m4a),
        ("WMA", bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), "a Windows Media file", m4a),
        ("MIDI", b"MThd\0\0\0\6\0\1\0\1\0\x60", "a MIDI file, which holds notes", ""),
        ("Speex", _ogg(b"Speex   1.2"), "the OGG holds Speex", ""),
        ("Theora", _ogg(b"\x80theora\3\2"), "the OGG holds a Theora video", ""),
        ("JPEG", b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG image, not a sound", ""),
        ("text", b"hello, world", "is not a sound; send a WAV, FLAC, OGG or MP3 file", ""),
        ("MP3 header alone", b"\xff\xfb\x90\x64", "no frames of sound", ""),
        ("tag alone", id3(100), "no frames of sound", ""),
        (
            "WAV of a codec",
            NO_CODEC,
            "is not a sound we can read",
            "",
        ),
    ):
        yield Case(name, data, refused=what, report=report)
    both = np.array([[np.inf, -np.inf]] * 100, np.float32)
    yield Case("WAV of infinite samples", encoded(both, 8_000, "WAV", "FLOAT"), refused="NaN or infinite")
    huge = wav(pcm_format(block=0xFFFF, bits=0), chunk(b"data", bytes(100)))
    yield Case("WAV of blocks of 65,535 bytes", huge, refused="no samples|not a sound we can")
    pcm = bytes(32_000)
    yield Case(
        "WAV cut short",
        wav(pcm_format(), chunk(b"data", pcm, size=48_000), size=48_036),
        refused="cut short: its header says 48000 bytes of samples, 32000 are there",
    )
    whole = encoded(tone(16_000), 16_000, "FLAC")
    yield Case("FLAC cut short", whole[: len(whole) // 2], refused="damaged|cut short")
    yield Case("FLAC of impossible length", _with_flac_count(whole, 2**36 - 1), refused="s are longer than the limit")
    long = encoded(np.zeros(16_000 * 61, np.int16), 16_000, "FLAC")
    yield Case(
        "FLAC of 61 s that does not say so", _with_flac_count(long, 0), refused="60.0 s are longer than the limit"
    )
    minute = encoded(np.zeros(8_000 * 61), 8_000, "MP3")
    yield Case("MP3 of 61 s", minute, refused="s are longer than the limit of 60.0 s; cut it")
    piped = wav(pcm_format(), chunk(b"data", bytes(16_000 * 2 * 61), size=0xFFFFFFFF))
    yield Case("WAV of 61 s that does not say so", piped, refused="61.0 s are longer than the limit of 60.0 s; cut it")


def _ogg(packet: bytes) -> bytes:
    return _page(struct.pack("<4sBBqIIIBB", b"OggS", 0, 2, 0, 7, 0, 0, 1, len(packet)) + packet)

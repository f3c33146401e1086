"""Mutations of real pictures and sounds, with oracles on time, memory, words and stderr.

    python -m field.fuzz --seconds 300 --seed 1

Inputs are decoded in a child process with a limit on its memory. An input is a finding if it ends the child, raises
anything but InvalidContent, gives values that are no pixels or samples, takes more processor time or memory than a
decoding may, or makes a decoder write to stderr. Findings are kept as files; executions are counted in a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from field import images, sounds
from plaudit_models.errors import InvalidContent
from plaudit_models.limits import Limits
from plaudit_models.media.containers.ogg import checksum
from plaudit_models.media.formats import image_format
from plaudit_models.media.images import decode_image
from plaudit_models.media.sounds import decode_audio
from plaudit_models.spec import AudioModality, ImageModality

MAX_PROCESSOR_S: Final = 0.5
"""Twice what a decoding of an attack may take."""
MAX_MEMORY_BYTES: Final = 160 * 2**20
ADDRESS_SPACE_BYTES: Final = 3 * 2**30
SILENCE_S: Final = 60.0
"""Time after which a child that reports nothing hangs."""
REPORT_EVERY: Final = 200
_IMAGE: Final = ImageModality(32, 32, 3)
_SOUND: Final = AudioModality(16_000, 1.0)
_LIMITS: Final = Limits(max_image_bytes=8 * 2**20, max_audio_bytes=8 * 2**20)
_INTERESTING: Final = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0xFFFFFFFE,
)


def seeds() -> list[bytes]:
    """Small real files of every format, and those of public reports."""
    pictures = [*images.ordinary(), *images.animated(), *images.oriented(), *images.reported()]
    heard = [*sounds.ordinary(), *sounds.reported(), *sounds.refused()]
    return sorted({case.data for case in (*pictures, *heard) if 20 < len(case.data) < 60_000})


def mutated(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """A file with some changes: bytes, numbers, pieces; with its checksums put right half of the time."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8, 30))):
        rng.choice(_CHANGES)(changed, others, rng)
        if not changed:
            changed = bytearray(data)
    whole = bytes(changed)
    return with_checksums(whole) if rng.random() < 0.5 else whole


def _place(data: bytearray, rng: random.Random) -> int:
    """Headers are hit more often than the rest."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 200)
    return rng.randrange(end)


def _byte(data: bytearray, others: Sequence[bytes], rng: random.Random) -> None:
    data[_place(data, rng)] = rng.randrange(256)


def _bit(data: bytearray, others: Sequence[bytes], rng: random.Random) -> None:
    data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _number(data: bytearray, others: Sequence[bytes], rng: random.Random) -> None:
    at, size = _place(data, rng), rng.choice((1, 2, 4, 4, 8))
    value = rng.choice((*_INTERESTING, len(data), rng.randrange(2**16)))
    packed = value.to_bytes(8, rng.choice(("little", "big")))
    data[at : at + size] = packed[:size] if rng.random() < 0.5 else packed[-size:]


def _cut(data: bytearray, others: Sequence[bytes], rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _remove(data: bytearray, others: Sequence[bytes], rng: random.Random) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 12, 100))]


def _repeat(data: bytearray, others: Sequence[bytes], rng: random.Random) -> None:
    at = _place(data, rng)
    piece = bytes(data[at : at + rng.choice((1, 4, 12, 40, 400))])
    data[at:at] = piece * min(rng.choice((1, 2, 50, 2_000)), 2**20 // max(len(piece), 1))


def _splice(data: bytearray, others: Sequence[bytes], rng: random.Random) -> None:
    other = rng.choice(others)
    at = rng.randrange(len(other))
    place = _place(data, rng)
    data[place : place + rng.choice((0, 0, 8, 64))] = other[at : at + rng.choice((4, 16, 64, 1_000))]


_CHANGES: Final[tuple[Callable[[bytearray, Sequence[bytes], random.Random], None], ...]] = (
    _byte,
    _byte,
    _bit,
    _bit,
    _number,
    _number,
    _number,
    _cut,
    _remove,
    _repeat,
    _splice,
)


def with_checksums(data: bytes) -> bytes:
    """Checksums of PNG chunks and OGG pages as their contents now are, so that a change is seen by more than them."""
    changed = bytearray(data)
    if data.startswith(b"\x89PNG"):
        at = 8
        while at + 12 <= len(data):
            length = struct.unpack_from(">I", data, at)[0]
            if at + 12 + length > len(data):
                break
            struct.pack_into(">I", changed, at + 8 + length, zlib.crc32(data[at + 4 : at + 8 + length]))
            at += 12 + length
    at = data.find(b"OggS")
    while at >= 0 and at + 27 <= len(data):
        segments = data[at + 26]
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        changed[at + 22 : at + 26] = bytes(4)
        struct.pack_into("<I", changed, at + 22, checksum(bytes(changed[at:end])))
        at = data.find(b"OggS", max(end, at + 1))
    return bytes(changed)


# --- the child -------------------------------------------------------------------------------------------------------


def _memory_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def decode(data: bytes) -> str:
    """ "image", "sound" or "refused"; raises AssertionError: what came out is neither."""
    outcome = "refused"
    is_image = bool(image_format(data))
    for kind in ("image", "sound") if is_image else ("sound", "image"):
        try:
            if kind == "image":
                decoded = decode_image(data, _IMAGE, name="x", limits=_LIMITS)
                assert decoded.shape == _IMAGE.shape
                assert 0.0 <= decoded.min() <= decoded.max() <= 1.0
            else:
                decoded = decode_audio(data, _SOUND, name="x", limits=_LIMITS)
                assert decoded.shape == _SOUND.shape
                assert -1.0 <= decoded.min() <= decoded.max() <= 1.0
            outcome = kind
        except InvalidContent as error:
            problem = error.problem
            if not 10 < len(problem) < 600 or " at 0x" in problem:
                raise AssertionError(f"not a sentence for a client: {problem}") from error
    return outcome


def child(seed: int, folder: Path) -> None:
    """Decode for ever; the input under way lies in ``folder``. Prints counts and findings as lines of JSON."""
    files = seeds()
    rng = random.Random(seed)
    for data in files[:: len(files) // 20]:
        decode(data)  # what is loaded once is nobody's memory
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    counts = {"image": 0, "sound": 0, "refused": 0}
    current = (folder / "current").open("wb", buffering=0)
    while True:
        for _ in range(REPORT_EVERY):
            data = mutated(rng.choice(files), files, rng)
            current.seek(0)
            current.truncate()
            current.write(data)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            before = _memory_bytes("VmRSS")
            began_s = time.process_time()
            problem = ""
            try:
                counts[decode(data)] += 1
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            took_s, took_bytes = time.process_time() - began_s, _memory_bytes("VmHWM") - before
            if not problem and took_s > MAX_PROCESSOR_S:
                problem = f"took {took_s:.2f} s of processor time"
            if not problem and took_bytes > MAX_MEMORY_BYTES:
                problem = f"took {took_bytes // 2**20} MiB"
            if problem:
                name = f"{zlib.crc32(data):08x}"
                (folder / name).write_bytes(data)
                print(json.dumps({"finding": name, "problem": problem[:500]}), flush=True)
        print(json.dumps(counts), flush=True)


# --- the parent ------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m field.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--out", type=Path, default=Path("build") / "fuzz-media")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.child:
        child(options.seed, options.out)
    total: dict[str, Any] = {"seed": options.seed, "seconds": 0.0, "image": 0, "sound": 0, "refused": 0, "findings": []}
    began_s, seed = time.monotonic(), options.seed
    while (left_s := options.seconds - (time.monotonic() - began_s)) > 0:
        _run(seed, options.out, left_s, total)
        seed += 1_000_003
    total["seconds"] = round(time.monotonic() - began_s, 1)
    _record(options.out / "executions.json", total)
    executions = total["image"] + total["sound"] + total["refused"]
    print(f"{executions} executions in {total['seconds']:.0f} s, {len(total['findings'])} findings")
    for finding in total["findings"]:
        print(finding, file=sys.stderr)
    return 1 if total["findings"] else 0


def _run(seed: int, folder: Path, left_s: float, total: dict[str, Any]) -> None:
    """One child until it ends or the time is over."""
    command = [sys.executable, "-m", "field.fuzz", "--child", "--seed", str(seed), "--out", str(folder)]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        counts: dict[str, int] = {}
        until_s, heard_s, text = time.monotonic() + left_s, time.monotonic(), b""
        ended = False
        while not ended and time.monotonic() < until_s and time.monotonic() - heard_s < SILENCE_S:
            ended = process.poll() is not None
            piece = process.stdout.read()
            if piece:
                heard_s = time.monotonic()
                *lines, text = (text + piece).split(b"\n")
                for line in map(json.loads, lines):
                    if "finding" in line:
                        total["findings"].append(f"{folder / line['finding']}: {line['problem']}")
                    else:
                        counts = line
            time.sleep(0.1)
        problem = ""
        if ended:
            problem = f"the child ended with {process.returncode}"
        elif time.monotonic() < until_s:
            problem = f"the child was silent for {SILENCE_S:.0f} s"
        process.kill()
        process.wait()
        errors.seek(0)
        if said := errors.read(2_000):
            problem = problem or f"stderr: {said.decode(errors='replace')[:300]!r}"
        if problem:
            name = f"seed-{seed}"
            (folder / name).write_bytes((folder / "current").read_bytes())
            total["findings"].append(f"{folder / name}: {problem}")
    for kind, count in counts.items():
        total[kind] += count


def _record(path: Path, total: dict[str, Any]) -> None:
    """Add a run to the file of all runs."""
    runs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path.write_text(json.dumps([*runs, total], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

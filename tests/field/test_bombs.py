"""Small files that cost much are refused before a decoder sees them, or decoded in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from field import bombs
from plaudit_models.errors import InvalidContent
from plaudit_models.limits import Limits
from plaudit_models.media import images, sounds
from plaudit_models.media.formats import image_format
from plaudit_models.media.images import decode_image
from plaudit_models.media.sounds import decode_audio
from plaudit_models.spec import AudioModality, ImageModality

LIMITS = Limits(max_image_bytes=9 * 2**20, max_audio_bytes=9 * 2**20)
MAX_MEMORY_BYTES = 128 * 2**20
"""Of one decoding, above what was there before."""


def decode(data: bytes) -> Any:
    if image_format(data) or data[:2] == b"II":
        return decode_image(data, ImageModality(64, 64, 3), name="photo", limits=LIMITS)
    return decode_audio(data, AudioModality(16_000, 1.0), name="voice", limits=LIMITS)


@pytest.mark.parametrize("name", bombs.REFUSED)
def test_refused_before_a_decoder_sees_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, what = bombs.REFUSED[name]
    data = make()

    def decoder(*_: object) -> None:
        pytest.fail("a decoder was called")

    monkeypatch.setattr(images, "_READERS", {form: (read, decoder) for form, (read, _) in images._READERS.items()})
    monkeypatch.setattr(sounds, "_Stream", decoder)
    with pytest.raises(InvalidContent, match=what):
        decode(data)


@pytest.mark.field
def test_decoded_in_bounded_memory(tmp_path: Path) -> None:
    """In processes of their own, forked from one that has only imported what decodes."""
    files = {name: tmp_path / str(number) for number, name in enumerate(bombs.DECODED)}
    for name, make in bombs.DECODED.items():
        files[name].write_bytes(make())
    done = subprocess.run(
        [sys.executable, __file__, *map(str, files.values())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    took_bytes = dict(zip(files, map(int, done.stdout.split()), strict=True))
    assert {name: size for name, size in took_bytes.items() if size > MAX_MEMORY_BYTES} == {}


def _memory_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _print_memory(path: str) -> None:
    """Memory that decoding a file took at most, in a process that ends with it."""
    if os.fork():
        status = os.wait()[1]
        if status:
            sys.exit(f"{path}: {status}")
        return
    data = Path(path).read_bytes()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _memory_bytes("VmRSS")
    problem = ""
    try:
        decode(data)
    except InvalidContent as error:
        problem = str(error)
    took = _memory_bytes("VmHWM") - before
    if problem and "damaged" not in problem and "does not say its length" not in problem:
        sys.exit(problem)
    print(took, flush=True)
    os._exit(0)


if __name__ == "__main__":
    for each in sys.argv[1:]:
        _print_memory(each)

"""Ledger of a model: all its rollouts in one file that only grows, and marks in it, so that nobody reads all of it.

    ledger.jsonl   all rollouts, oldest first, one a line
    ledger.index   the marks: every 64th line's place, its generation, and the highest version that was live before it

The marks can be had again from the lines, so they may be lost, damaged or behind; lines of a release that knows of no
marks are marked when they are next looked for. A line without effect (its writer died before the rollout was replaced,
or the rollout was put back to an earlier one) is followed by another one of its generation or a lower one, which takes
the place of it and of all behind it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import struct
import sys
import threading
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from plaudit.core.limits import MAX_ROLLOUT_BYTES
from plaudit.core.rollout import Rollout, rollout_from_dict

_LINES_PER_MARK: Final = 64
_SAVE_EVERY: Final = 16
"""Marks that may be missing in the file: whoever opens the ledger reads up to so many times 64 lines."""
_MAGIC: Final = b"plaudit marks 1" + sys.byteorder[:1].encode()
_HEADER: Final = struct.Struct("<16sI")
"""Of ``ledger.index``: magic, and the checksum of the marks behind it."""
_OWN_LINE: Final = re.compile(rb'\{"model": "[a-z0-9_-]*", "generation": (\d{1,18}), "live": (\d{1,18}|null), ')
"""Beginning of a line as :meth:`Ledger.append` writes it: much faster to read than the whole."""


class _Line(NamedTuple):
    """Place of a line, from ``offset`` to ``end``, and what the marks need of it; ``live``: 0 if no version was."""

    offset: int
    end: int
    generation: int
    live: int


class _Block(NamedTuple):
    """Lines between two marks, from ``start`` to ``end``.

    Attributes:
        below: generation of the line behind them: one of this generation or a later one had no effect.
    """

    start: int
    end: int
    below: int


class Ledger:
    """Safe to use from several threads, and from several processes as long as one of them appends at a time.

    Args:
        folder: of the model.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ledger.jsonl"
        self._index = folder / "ledger.index"
        self._lock = threading.Lock()
        self._forget()

    def append(self, rollout: Rollout) -> None:
        """Raises OSError; then nothing was added."""
        line = json.dumps(asdict(rollout)).encode() + b"\n"
        with self._path.open("ab+", buffering=0) as file:  # a buffer would be written again after a failure
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    line = b"\n" + line  # after one that a crash cut short
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise
        with suppress(OSError), self._lock:  # the marks can be made later
            self._follow()

    def after(self, generation: int, up_to: int) -> Iterator[Rollout]:
        """Rollouts of the generations ``generation`` + 1 … ``up_to``, read a block at a time. Raises OSError."""
        with self._lock:
            self._follow()
            blocks = self._blocks(max(0, bisect_right(self._generations, generation + 1) - 1))
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            for block in blocks:
                for rollout in _rollouts(file, block):
                    if generation < rollout.generation <= up_to:
                        yield rollout

    def first_live(self, version: int, up_to: int) -> Rollout | None:
        """First rollout of a generation ≤ ``up_to`` with ``version`` or a later one live. Raises OSError."""
        with self._lock:
            self._follow()
            if not self._offsets or version > self._newest:
                return None
            block = next(self._blocks(max(0, bisect_left(self._newest_before, version) - 1)))
        with self._path.open("rb") as file:
            found = (each for each in _rollouts(file, block) if each.live is not None and each.live >= version)
            return next((each for each in found if each.generation <= up_to), None)

    # --- marks, all under the lock -----------------------------------------------------------------------------------

    def _blocks(self, first: int) -> Iterator[_Block]:
        """Blocks from the one with this number on, as they are now."""
        offsets, below = self._offsets[first:], self._generations[first + 1 :]
        offsets.append(self._end)
        below.append(sys.maxsize)
        return map(_Block, offsets, offsets[1:], below)

    def _forget(self) -> None:
        self._offsets, self._generations, self._newest_before = array("q"), array("q"), array("q")
        self._since_mark = _LINES_PER_MARK
        self._generation = 0
        self._newest = 0
        self._end = 0
        self._last: _Line | None = None
        self._saved = 0
        self._file_id: tuple[int, int] | None = None

    def _follow(self) -> None:
        """Mark the lines that were added since the last time."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            self._forget()
            return
        with file:
            status = os.fstat(file.fileno())
            file_id = status.st_dev, status.st_ino
            if file_id == self._file_id and status.st_size == self._end:
                return
            if file_id != self._file_id or status.st_size < self._end or not _stands(file, self._last):
                self._forget()
                self._file_id = file_id
                self._load(file)
            for line in _marked_lines(file, self._end, status.st_size):
                self._add(file, line)
        self._save()

    def _add(self, file: BinaryIO, line: _Line) -> None:
        if self._offsets and line.generation <= self._generation:
            self._take_back(file, line)
        if self._since_mark >= _LINES_PER_MARK:
            self._offsets.append(line.offset)
            self._generations.append(line.generation)
            self._newest_before.append(self._newest)
            self._since_mark = 0
        self._since_mark += 1
        self._generation = line.generation
        self._newest = max(self._newest, line.live)
        self._end, self._last = line.end, line

    def _take_back(self, file: BinaryIO, line: _Line) -> None:
        """Forget the lines of this generation and later ones, whose place ``line`` takes."""
        while len(self._offsets) > 1 and self._generations[-1] >= line.generation:
            self._drop_mark()
        offset = self._drop_mark()
        for each in _marked_lines(file, offset, line.offset):
            if each.generation < line.generation:
                self._add(file, each)

    def _drop_mark(self) -> int:
        """Go back to before the last mark; returns its place."""
        self._newest = self._newest_before.pop()
        self._generation = self._generations.pop() - 1
        self._since_mark = _LINES_PER_MARK
        self._saved = min(self._saved, len(self._offsets) - 1)
        return self._offsets.pop()

    def _load(self, file: BinaryIO) -> None:
        """Begin with the saved marks, if they are of these lines."""
        try:
            raw = self._index.read_bytes()
            magic, checksum = _HEADER.unpack_from(raw)
        except (OSError, struct.error):
            return
        columns = memoryview(raw)[_HEADER.size :]
        if magic != _MAGIC or zlib.crc32(columns) != checksum or len(columns) % (3 * 8):
            return
        size = len(columns) // 3
        offsets, generations, newest_before = (array("q", bytes(columns[i * size : (i + 1) * size])) for i in range(3))
        if not offsets or not _stands(file, _Line(offsets[-1], offsets[-1], generations[-1], 0)):
            return
        self._offsets, self._generations, self._newest_before = offsets, generations, newest_before
        self._saved = len(offsets)
        self._end = self._drop_mark()

    def _save(self) -> None:
        """Save the marks, unless enough of them are saved; where that is not possible they stay in memory."""
        if len(self._offsets) < self._saved + _SAVE_EVERY:
            return
        self._saved = len(self._offsets)
        columns = b"".join(each.tobytes() for each in (self._offsets, self._generations, self._newest_before))
        fresh = self._index.with_name(f".ledger.index-{secrets.token_hex(8)}")
        with suppress(OSError):
            try:
                fresh.write_bytes(_HEADER.pack(_MAGIC, zlib.crc32(columns)) + columns)
                fresh.replace(self._index)
            finally:
                fresh.unlink(missing_ok=True)


def _rollouts(file: BinaryIO, block: _Block) -> list[Rollout]:
    """Rollouts that took effect, of the lines of a block."""
    rollouts: list[Rollout] = []
    for _, line in _lines(file, block.start, block.end):
        try:
            rollout = rollout_from_dict(json.loads(line))
        except (ValueError, RecursionError):
            continue  # cut short by a crash, so it never took effect
        while rollouts and rollouts[-1].generation >= rollout.generation:
            rollouts.pop()
        rollouts.append(rollout)
    return [rollout for rollout in rollouts if rollout.generation < block.below]


def _marked_lines(file: BinaryIO, start: int, end: int) -> Iterator[_Line]:
    for offset, line in _lines(file, start, end):
        own = _OWN_LINE.match(line)
        if own is not None and line.endswith(b"}\n"):
            live = 0 if own[2] == b"null" else int(own[2])
            yield _Line(offset, offset + len(line), int(own[1]), live)
            continue
        try:
            rollout = rollout_from_dict(json.loads(line))
        except (ValueError, RecursionError):
            continue
        yield _Line(offset, offset + len(line), rollout.generation, rollout.live or 0)


def _stands(file: BinaryIO, known: _Line | None) -> bool:
    """Whether a line is where it was; if not, the file was written anew."""
    if known is None:
        return True
    line = next(_marked_lines(file, known.offset, known.offset + 1), None)
    return line is not None and (line.offset, line.generation) == (known.offset, known.generation)


def _lines(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Complete lines that begin between two places, each with its place."""
    at = start
    while at < end:
        file.seek(at)
        line = file.readline(MAX_ROLLOUT_BYTES)
        if line.endswith(b"\n"):
            yield at, line
        elif len(line) < MAX_ROLLOUT_BYTES:
            return  # it is being written
        else:
            while line and not line.endswith(b"\n"):
                at += len(line)
                line = file.readline(MAX_ROLLOUT_BYTES)
        at += len(line)

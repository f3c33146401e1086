"""One parser in a process of its own, with a limit on its memory, until the process is ended or finds something.

With atheris inputs are made by what they reach (coverage); without it by mutation of the seeds alone. Executions are
counted in a file that is shared with the parent, so that they count whatever ends this process.
"""

from __future__ import annotations

import mmap
import os
import random
import resource
import struct
import sys
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from fuzz.parser import execute
from fuzz.parsers import find

ADDRESS_SPACE_BYTES: Final = 6 * 2**30
_COUNT: Final = struct.Struct("<QQ")
"""Executions, and how many of them were taken."""
_HANG_S: Final = 60


def make_counter(path: Path) -> None:
    path.write_bytes(bytes(_COUNT.size))


def counted(path: Path) -> tuple[int, int]:
    """Executions so far, and how many of them were taken."""
    executions, taken = _COUNT.unpack(path.read_bytes())
    return executions, taken


def main(name: str, folder: Path, seed: int) -> NoReturn:
    """Fuzz for ever. The counter, the corpus, and ``finding`` if there is one, lie in ``folder``."""
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is None:
        parser = find(name)
    else:
        with atheris.instrument_imports(include=["plaudit", "plaudit_models"]):
            parser = find(name)
    with (folder / "counter").open("r+b") as file:
        counter = mmap.mmap(file.fileno(), _COUNT.size)
    executions, taken, parent = 0, 0, os.getppid()

    def one(data: bytes) -> None:
        nonlocal executions, taken
        try:
            taken += execute(parser, data)
        except Exception:
            (folder / f"finding-{zlib.crc32(data):08x}").write_bytes(data)
            (folder / "finding.txt").write_text(traceback.format_exc(limit=-6), encoding="utf-8")
            raise
        executions += 1
        _COUNT.pack_into(counter, 0, executions, taken)
        if executions % 1_024 == 0 and os.getppid() != parent:
            os._exit(0)  # nobody counts any more

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    seeds = [*parser.seeds()]
    for data in seeds:
        one(data)  # what is loaded once is no input's time or memory
        (corpus / f"seed-{zlib.crc32(data):08x}").write_bytes(data)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    if atheris is not None:
        _guided(atheris, one, corpus, parser.max_bytes, seed)
    _mutate(one, seeds, parser.max_bytes, seed)


def _guided(atheris: Any, one: Callable[[bytes], None], corpus: Path, max_bytes: int, seed: int) -> NoReturn:
    options = [
        *(f"-max_len={max_bytes}", f"-seed={seed % 2**31}", f"-timeout={_HANG_S}", "-rss_limit_mb=4096"),
        *(f"-artifact_prefix={corpus.parent}/hang-", "-verbosity=0", "-close_fd_mask=0"),
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()
    raise AssertionError("atheris ends the process")


def _mutate(one: Callable[[bytes], None], seeds: list[bytes], max_bytes: int, seed: int) -> NoReturn:
    from field.fuzz import mutated

    rng = random.Random(seed)
    whole = [data for data in seeds if data]
    while True:
        one(mutated(rng.choice(whole), whole, rng)[:max_bytes])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))

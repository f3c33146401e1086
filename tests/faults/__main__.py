"""The fault suite: kill -9, pauses and slow connections at random moments under load; then everything is counted.

make test-faults                 200 rounds
make test-faults ROUNDS=20       fewer
make test-faults SEED=7          other moments
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.runner import conclude, table
from faults.rounds import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Hurt everything, lose nothing.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build") / "test-faults")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        measures = run(Path(folder), options.rounds, options.seed).measures()
    took_s = time.monotonic() - began_s
    print(table("faults", measures, took_s), flush=True)
    return conclude(options.out, {"faults": measures}, {"faults": took_s})


if __name__ == "__main__":
    sys.exit(main())

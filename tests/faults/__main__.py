"""The fault suite: kill -9, pauses and slow connections at random moments under load; then everything is counted.

make test-faults                 200 rounds
make test-faults ROUNDS=20       fewer
make test-faults SEED=7          other moments
make test-faults ONLY="broker-killed network-slow"
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.runner import conclude, table
from faults.rounds import FAULTS, run


def main() -> int:
    parser = argparse.ArgumentParser(description="Hurt everything, lose nothing.")
    parser.add_argument("only", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}; all if left out")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build") / "test-faults")
    options = parser.parse_args()
    for name in options.only:
        if name not in FAULTS:
            parser.error(f"fault: {name!r} is not one of {', '.join(FAULTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        measures = run(Path(folder), options.rounds, options.seed, options.only or FAULTS).measures()
    took_s = time.monotonic() - began_s
    print(table("faults", measures, took_s), flush=True)
    return conclude([options.out / "faults.json"], "faults", "make test-faults", {"faults": measures})


if __name__ == "__main__":
    sys.exit(main())

"""The scenario benchmarks; see runner.py. They read shared/data beside the repository, and weights of the group
encoders.

    make bench-scenarios                       all of them
    make bench-scenarios ONLY="voice_orders"   some of them
    make bench-scenarios QUICK=1               few passes over few rows, to see that everything runs; goals mean nothing
"""

from __future__ import annotations

import argparse
import os
import sys

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before numpy is loaded
    os.environ.setdefault(name, "1")

from benchmarks.runner import main  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Quality of what is pre-trained on real data.")
    sys.exit(main("scenarios", ["intents", "voice_orders"], parser))

"""The serving benchmarks; see runner.py.

make bench-serving                    all of them
make bench-serving ONLY="rates soak"  some of them
make bench-serving QUICK=1            short runs, to see that everything works
"""

import argparse
import sys

from benchmarks.runner import main

if __name__ == "__main__":
    sys.exit(
        main(
            "serving",
            ["start", "rates", "content", "overload", "soak"],
            argparse.ArgumentParser(
                description="Rates, latencies and memory of serving, beside the raw ONNX Runtime rate."
            ),
        )
    )

"""The feedback benchmarks; see runner.py.

make bench-feedback                    all of them
make bench-feedback ONLY="acks join"   some of them
make bench-feedback QUICK=1            short runs, to see that everything works
"""

import argparse
import sys

from benchmarks.runner import main

if __name__ == "__main__":
    sys.exit(
        main(
            "feedback",
            ["acks", "join", "ledger", "outage"],
            argparse.ArgumentParser(
                description="Rates of feedback made durable and learned from; effects of an outage of the broker."
            ),
        )
    )

"""The benchmark of attacks; see runner.py.

make bench-attacks            all of them
make bench-attacks QUICK=1    short runs, to see that everything works
"""

import argparse
import sys

from benchmarks.runner import main

if __name__ == "__main__":
    sys.exit(
        main(
            "attacks",
            ["refused", "beside"],
            argparse.ArgumentParser(description="What attacks cost the server, and what they do to an honest client."),
        )
    )

"""The rollout benchmarks; see runner.py.

make bench-rollout                          all of them
make bench-rollout ONLY="experiments rollback"   some of them
make bench-rollout QUICK=1                  short runs, to see that everything works
"""

import argparse
import sys

from benchmarks.runner import main

if __name__ == "__main__":
    sys.exit(
        main(
            "rollout",
            ["experiments", "real_experiment", "rollback", "shadow", "metrics", "scrape"],
            argparse.ArgumentParser(
                description="Time until a bad version is withdrawn, and costs of shadows and metrics."
            ),
        )
    )

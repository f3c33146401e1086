"""Console benchmark; see runner.py.

make bench-console                        of a `plaudit up` with a tiny model
make bench-console URL=http://host:port/  of a console that runs
"""

import argparse
import sys

from benchmarks.runner import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Time to the first paint of the console's page in Chromium.")
    parser.add_argument("--url", default="", help="of a console that runs")
    sys.exit(
        main("console", ["page"], parser, run=lambda module, options: module.run(options.url, quick=options.quick))
    )

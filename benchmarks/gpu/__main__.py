"""GPU benchmark; see runner.py. Exits with 2 where there is no GPU that ONNX Runtime can use.

make bench-gpu
"""

import argparse
import sys

from benchmarks.runner import main
from plaudit.adapters.runtime.session import choose_providers
from plaudit.core.errors import ConfigError

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Rows a second of the serving benchmark's models on an NVIDIA GPU, beside the processor."
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each model, device and batch size")
    if not {"-h", "--help"} & set(sys.argv):
        try:
            choose_providers("cuda")
        except ConfigError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
    sys.exit(
        main("gpu", ["rates"], parser, run=lambda module, options: module.run(options.seconds, quick=options.quick))
    )

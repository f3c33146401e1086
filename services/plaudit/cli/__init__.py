"""The ``plaudit`` command: from the shell to the rest, with errors of one sentence and meaningful exit codes.

Exit codes: 0 success, 1 it failed, 2 the command line or a setting is wrong, 78 a service found what starting it again
will not mend, 130 interrupted, 141 nobody reads the output.
"""

from __future__ import annotations

import os
import sys

_NEEDED = frozenset({"annotated_types", "pydantic", "rich", "typer"})


def one_thread_for_algebra() -> None:
    """Tell numpy's OpenBLAS, before numpy is loaded, to use one thread, unless the environment says how many.

    Its threads wait for each other by spinning: beside a broker and an inference service on the same cores, the
    learner's factorisations, which take one thread a millisecond, were seen to take a hundred.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def waiting_threads_sleep() -> None:
    """Tell torch's OpenMP, before torch is loaded, to let waiting threads sleep, unless the environment says how.

    By itself it lets them spin for milliseconds. Beside another program that keeps the cores busy, they spin while the
    thread that they wait for does not run: a step of pre-training was seen to take four to seven times the processor
    time. Fine-tuning jobs inherit it.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "1000"  # GNU's, as in torch for Linux: long enough between two operations
        os.environ["KMP_BLOCKTIME"] = "0"  # LLVM's, in ms


def main() -> None:
    """The entry point of the distribution and of ``python -m plaudit``."""
    one_thread_for_algebra()
    waiting_threads_sleep()
    try:
        from plaudit.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        print(
            f"plaudit: {error.name} is missing; the shell commands need the extra cli: pip install 'plaudit[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    run()

"""Training in torch.

Threads that wait for work sleep. OpenMP's default is to spin for milliseconds, and beside another program that keeps
the cores busy they then spin while the thread they wait for does not run: with two cores and two threads a step of
pre-training took five to twelve times as long. What the user has set is left alone; torch reads it when it is loaded,
so it is set here, before any module of this package loads torch.
"""

import os

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
    os.environ["GOMP_SPINCOUNT"] = "1000"  # GNU's, which torch has on Linux: some 10 µs, enough between two operations
    os.environ["KMP_BLOCKTIME"] = "0"  # LLVM's, in ms

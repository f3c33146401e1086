"""Processor cores that this process may use."""

from __future__ import annotations

import os
import sys


def available_cores() -> int:
    """Number of cores in the process's affinity mask, or of the machine where there is none."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1

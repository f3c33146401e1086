"""Number of threads of training."""

from __future__ import annotations

import torch


def use_threads(count: int) -> None:
    """Let one operation use up to ``count`` threads, 1 or more, in the whole process from now on."""
    torch.set_num_threads(count)

"""Parts of all training loops: threads, order of rows, one step, learning rate, running means."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor, nn


def use_threads(count: int) -> None:
    """Let one operation use up to ``count`` threads, 1 or more, in the whole process from now on."""
    torch.set_num_threads(count)


def one_cycle(fraction: float) -> float:
    """Learning rate at a fraction of training, as a share of its peak.

    A linear rise over the first 10 %, then a cosine to 0 (Smith and Topin 2018, "Super-Convergence").
    """
    rise = 0.1
    if fraction < rise:
        return (fraction + 0.01) / (rise + 0.01)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (fraction - rise) / (1.0 - rise))))


def fraction_done(step: int, steps: int, elapsed_s: float, max_duration_s: float | None) -> float:
    """Fraction of training that is done, 1 or more at its end: by steps, unless the time will not suffice for them.

    Time has no say until a fifth of it is gone, and then only as far as it is ahead of the steps, so that a run which
    is done in time is the same however long each step took.
    """
    by_steps = step / steps
    if max_duration_s is None:
        return by_steps
    return max(by_steps, 1.25 * elapsed_s / max_duration_s - 0.25)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, *, learning_rate: float, max_gradient_norm: float) -> None:
    """One step of the optimizer down the gradient of the loss. A group's ``share`` is of the learning rate, 1 unless
    it says otherwise.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("share", 1.0)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([w for group in optimizer.param_groups for w in group["params"]], max_gradient_norm)
    optimizer.step()


def blocks(n: int, batch_rows: int, generator: Generator) -> list[Tensor]:
    """Row numbers of consecutive blocks, in random order; a last block of less than half the rows is left out."""
    whole = [block for block in torch.arange(n).split(batch_rows) if len(block) >= min(batch_rows, n) / 2]
    return [whole[int(i)] for i in torch.randperm(len(whole), generator=generator)]


def shuffled(n: int, batch_rows: int, generator: Generator) -> Iterator[Tensor]:
    """Batches of row numbers for ever, every row once before any row again."""
    while True:
        yield from torch.randperm(n, generator=generator).split(batch_rows)


def blocks_for_ever(n: int, batch_rows: int, generator: Generator) -> Iterator[Tensor]:
    while True:
        yield from blocks(n, batch_rows, generator)


class IntervalMean:
    """Running mean that is emptied when it is read."""

    def __init__(self) -> None:
        self.last = 0.0
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self.last = value
        self._sum += value
        self._count += 1

    def take(self) -> float:
        mean = self._sum / max(1, self._count)
        self._sum, self._count = 0.0, 0
        return mean

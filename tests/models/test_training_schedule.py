"""Order of rows, learning rate and running means."""

from __future__ import annotations

import pytest
import torch

from plaudit_models.training.schedule import IntervalMean, blocks, fraction_done, one_cycle, shuffled


def test_one_cycle_rises_to_its_peak_and_falls_to_nothing() -> None:
    """Rise over 10 %: at 0 it is 0.01/0.11 = 1/11. Half-way down, at 0.1 + 0.45, the cosine is at π/2: one half."""
    assert one_cycle(0.0) == pytest.approx(1 / 11)
    assert one_cycle(0.1) == pytest.approx(1.0)
    assert one_cycle(0.55) == pytest.approx(0.5)
    assert one_cycle(1.0) == pytest.approx(0.0)


def test_training_is_over_by_steps_unless_time_runs_out() -> None:
    """Time counts 1.25·t − 0.25: nothing at a fifth, ½ at 0.6, 1 at 1; half-way by steps it speaks after 0.6 only."""
    assert fraction_done(5, 10, 0.0, None) == 0.5
    assert fraction_done(0, 10, 0.19, 1.0) == 0.0
    assert fraction_done(5, 10, 6.0, 10.0) == pytest.approx(0.5)
    assert fraction_done(5, 10, 8.0, 10.0) == pytest.approx(0.75)
    assert fraction_done(1, 10, 10.0, 10.0) == 1.0
    assert fraction_done(10, 10, 1.0, 10.0) == 1.0


def test_every_row_is_seen_once_before_any_again() -> None:
    batches = shuffled(5, 2, torch.Generator().manual_seed(0))
    for _ in range(2):
        rows = torch.cat([next(batches) for _ in range(3)])
        assert sorted(rows.tolist()) == [0, 1, 2, 3, 4]


def test_blocks_hold_consecutive_rows_and_leave_out_a_small_rest() -> None:
    """10 rows by 4: 0-3, 4-7 and 8-9; the last is half a block and stays. By 8 the rest of 2 goes."""
    found = blocks(10, 4, torch.Generator().manual_seed(0))
    assert sorted(block.tolist() for block in found) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [block.tolist() for block in blocks(10, 8, torch.Generator())] == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert [block.tolist() for block in blocks(3, 8, torch.Generator())] == [[0, 1, 2]]


def test_a_mean_is_emptied_when_read() -> None:
    mean = IntervalMean()
    mean.add(1.0)
    mean.add(3.0)
    assert mean.take() == 2.0
    mean.add(5.0)
    assert (mean.take(), mean.last, mean.take()) == (5.0, 5.0, 0.0)

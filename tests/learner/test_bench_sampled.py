"""The benchmark of sampled answers runs, and measures what it says, on a task of 64 actions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.learning import sampled


def test_it_runs_and_every_measure_is_a_number() -> None:
    measures = sampled.run(shuffles=1, quick=True)
    assert len({measure.name for measure in measures}) == len(measures)
    assert all(math.isfinite(measure.value) for measure in measures)
    assert all(measure.value > 0 for measure in measures if "cost" in measure.name)


def test_both_objectives_gain_what_labels_do_not_tell() -> None:
    """Two sights and two sounds: 16 actions."""
    sizes = sampled.Sizes(kinds=2, labelled=512, steps=100, thumbs=512, replays=8.0, judged=200, timed=())
    found = sampled.compare(sizes, seed=0)
    for objective in ("target", "sampled"):
        assert found[objective] > found["parent"] + 0.2
        assert found[f"{objective}, labelled"] > 0.9


def test_users_like_what_labels_tell_where_they_do_and_one_of_four_elsewhere() -> None:
    prototypes = np.zeros((2, 4, sampled.SENSES), np.float32)
    drawn = sampled._draw(prototypes, 500, np.random.default_rng(0))
    assert (drawn.liked[drawn.labelled_mask] == drawn.first[drawn.labelled_mask]).all()
    offset = (drawn.liked - drawn.first)[~drawn.labelled_mask]
    assert set(offset.tolist()) == {0, 1, 2, 3}
    assert drawn.labelled_mask.mean() == pytest.approx(0.5, abs=0.1)

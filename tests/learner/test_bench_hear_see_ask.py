"""The benchmark of hear-see-ask runs, in one process and over gRPC, on streams too short to learn anything."""

from __future__ import annotations

import math

import pytest

from benchmarks.learning import hear_see_ask


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_and_every_measure_is_a_number() -> None:
    measures = {measure.name: measure.value for measure in hear_see_ask.run(shuffles=1, quick=True)}
    assert all(math.isfinite(value) for value in measures.values())
    assert measures["over gRPC: failed requests"] == 0

"""Our estimators against Open Bandit Pipeline's on its own logged data, to 1e-6; see obp_reference.py for theirs.

The sample travels with the tests; the whole logs are compared where shared/data lies beside the repository, in
`make bench-learning` too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks.learning.bandit_log import CAMPAIGNS, FOLDER
from benchmarks.learning.ope import LOGGED_BY, estimates, inputs, sample_inputs
from support.programs import CANNOT_BE_HAD

RAW: Final[dict[str, Any]] = json.loads((Path(__file__).parent / "data/obp_reference.json").read_text(encoding="utf-8"))
WHOLE_LOGS: Final = [(c, by) for c in CAMPAIGNS for by in LOGGED_BY]


def test_estimates_of_a_sample_are_open_bandit_pipelines() -> None:
    assert estimates(*sample_inputs(RAW["sample"]), RAW["clip"]) == pytest.approx(
        RAW["estimates"]["sample"], rel=0.0, abs=1e-6
    )


@pytest.mark.parametrize(("campaign", "logged_by"), WHOLE_LOGS)
def test_estimates_of_whole_logs_are_open_bandit_pipelines(campaign: str, logged_by: str) -> None:
    if not FOLDER.exists():
        pytest.skip(f"{CANNOT_BE_HAD}the logged data, which is not ours to ship; the sample above is always compared")
    theirs = RAW["estimates"][f"{campaign}, {logged_by} log"]
    assert estimates(*inputs(campaign, logged_by)[:3], RAW["clip"]) == pytest.approx(theirs, rel=0.0, abs=1e-6)

"""Files around the code say the same as the package: versions, Pythons, targets."""

from __future__ import annotations

import re
import tomllib

import yaml

from plaudit import __version__
from support.markdown import ROOT, read


def test_one_version_everywhere() -> None:
    assert yaml.safe_load(read(ROOT / "CITATION.cff"))["version"] == __version__
    assert re.search(
        rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", read(ROOT / "CHANGELOG.md"), re.MULTILINE
    )


def test_ci_runs_every_python_that_is_claimed() -> None:
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    claimed = [each.rpartition(" ")[2] for each in project["classifiers"] if re.search(r"Python :: 3\.\d+$", each)]
    workflow = yaml.safe_load(read(ROOT / ".github/workflows/ci.yml"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == claimed
    assert project["requires-python"] == f">={claimed[0]}"


def test_every_phony_target_exists_and_has_a_help_text() -> None:
    makefile = read(ROOT / "Makefile")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony is not None
    told = set(re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE))
    assert sorted(set(phony[1].split()) ^ told) == []

"""Graphs as exporters and converters write them today; `make test-field` installs what makes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from field.exporters import CASES, REFUSED
from field.graphs import Case
from field.served import Served, check, serve
from plaudit.adapters.runtime.importer import CannotImport, ImportOptions, import_onnx

pytestmark = [
    pytest.mark.field,
    pytest.mark.filterwarnings("ignore"),  # of the converters' own
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(CASES, tmp_path_factory.mktemp("exporters")) as running:
        yield running


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_served_as_onnxruntime_runs_it(case: Case, served: Served) -> None:
    check(case, served)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_it_is_refused_with_the_reason(case: Case, tmp_path: Path) -> None:
    (tmp_path / "version").mkdir()
    file = case.make(tmp_path)
    with pytest.raises(CannotImport, match=case.refused):
        import_onnx(file, "m", tmp_path / "version", ImportOptions(**case.options))

"""Graphs from elsewhere: imported, served, asked through both protocols, and compared with ONNX Runtime's own answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from field.graphs import CASES, REFUSED, Case
from field.served import Served, check, serve
from plaudit.adapters.runtime.importer import CannotImport, ImportOptions, import_onnx


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(CASES, tmp_path_factory.mktemp("field")) as running:
        yield running


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_served_as_onnxruntime_runs_it(case: Case, served: Served) -> None:
    check(case, served)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_it_is_refused_with_the_reason(case: Case, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "version").mkdir()
    file = case.make(tmp_path / "given")
    with pytest.raises(CannotImport, match=case.refused) as refused:
        import_onnx(file, "m", tmp_path / "version", ImportOptions(**case.options))
    assert len(str(refused.value)) < 700

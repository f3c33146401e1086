"""Graphs from elsewhere, served, asked through both protocols, and compared with ONNX Runtime's own answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from field.graphs import CASES, REFUSED, Case
from field.served import Served, check, serve
from plaudit.adapters.runtime.importer import CannotImport, ImportOptions, import_onnx
from plaudit.client import ClientError


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(CASES, tmp_path_factory.mktemp("field")) as running:
        yield running


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_served_as_onnxruntime_runs_it(case: Case, served: Served) -> None:
    check(case, served)


def test_one_caller_beyond_the_vocabulary_fails_alone(served: Served) -> None:
    """https://github.com/microsoft/onnxruntime/issues/2080: one word of one query, and others in its batch."""
    refused = []

    def ask(caller: int) -> None:
        for _ in range(20):
            tokens = np.array([caller, 2, 30_522 if caller == 3 else 7])
            try:
                served.client.predict({"tokens": tokens}, model="vocabulary")
            except ClientError as error:
                refused.append((caller, error))

    with ThreadPoolExecutor(7) as callers:
        list(callers.map(ask, range(7)))
    assert [caller for caller, _ in refused] == [3] * 20
    for _, error in refused:
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.field == 'content["tokens"]'
        assert "idx=30522 must be within the inclusive range [-50,49]" in error.message
        assert "/" not in error.message.replace("'/", "")
        assert len(error.message) < 500


def test_lengths_beyond_the_bound_are_refused(served: Served) -> None:
    with pytest.raises(ClientError, match=r"takes lengths of 1 to 4096 where its shape is free, got \[4097\]"):
        served.client.predict({"tokens": np.zeros(4_097, np.int64)}, model="vocabulary")


@pytest.mark.parametrize(
    ("model", "value"),
    [
        ("in-bool", np.array([1, 0, 1, 1])),
        ("in-uint8", np.array([1.0, 0.0, 255.0, 1.0])),
        ("in-int32", np.array([True, False, True, True])),
        ("in-float64", np.array([1, 0, 1, 1], np.float16)),
        ("columns", None),
    ],
)
def test_values_of_another_dtype_are_cast_where_nothing_is_lost(served: Served, model: str, value: Any) -> None:
    content: dict[str, Any] = {"age": np.array(3), "fare": np.float64(2.5)} if value is None else {"x": value}
    assert served.client.predict(content, model=model).action in ("0", "1", "2")


def test_a_value_that_would_be_lost_is_named(served: Served) -> None:
    with pytest.raises(ClientError, match=r"takes uint8, got a tensor of int64 whose value 300 at \[1\] is none"):
        served.client.predict({"x": np.array([1, 300, 0, 0])}, model="in-uint8")


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_it_is_refused_with_the_reason(case: Case, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "version").mkdir()
    file = case.make(tmp_path / "given")
    with pytest.raises(CannotImport, match=case.refused) as refused:
        import_onnx(file, "m", tmp_path / "version", ImportOptions(**case.options))
    assert len(str(refused.value)) < 700

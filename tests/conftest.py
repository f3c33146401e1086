"""Rules for all tests (in CI no test may be skipped), and fixtures that several packages use."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from support.kafka_broker import kafka, kafka_server
from support.postgres_server import PostgresServer, postgres_server
from support.programs import CANNOT_BE_HAD

__all__ = ["kafka", "kafka_server"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Turn a skip into a failure where CI=true.

    Excepted are tests marked ``gpu``, as CI has no GPU, and tests of programs that the machine cannot build, such as
    grpcurl without Go (tests/support/programs.py): pytest lists them.
    """
    report = yield
    excused = item.get_closest_marker("gpu") is not None or CANNOT_BE_HAD in str(report.longrepr)
    if report.skipped and os.environ.get("CI") == "true" and not excused:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where it must run: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """The same for a module that skips itself as a whole, which is never run and would not be missed."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where it must run: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """PostgreSQL server shared by all tests; each makes a database of its own."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """PostgreSQL server of one test, which may stop it."""
    with postgres_server() as server:
        yield server

"""Servers that the contract suites run against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from postgres_server import PostgresServer, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Shared by all tests; each makes a database of its own."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """One that a test may stop."""
    with postgres_server() as server:
        yield server

"""Both colours of client behind one face, and a server that records what they send."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from plaudit.client import AsyncClient, Client
from support.recording_server import Call, Recorder, recording_server


@pytest.fixture
def server() -> Iterator[Recorder]:
    with recording_server() as recorder:
        yield recorder


@pytest.fixture(params=["sync", "asyncio"])
def call(request: pytest.FixtureRequest, server: Recorder) -> Call:
    def call_sync(method: str, *args: Any, **kwargs: Any) -> Any:
        with Client(server.target, admin_token="sesame") as client:
            answer = getattr(client, method)(*args, **kwargs)
            return list(answer) if inspect.isgenerator(answer) else answer

    async def call_async(method: str, *args: Any, **kwargs: Any) -> Any:
        async with AsyncClient(server.target, admin_token="sesame") as client:
            answer = getattr(client, method)(*args, **kwargs)
            return [item async for item in answer] if inspect.isasyncgen(answer) else await answer

    def run_async(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(call_async(*args, **kwargs))

    return call_sync if request.param == "sync" else run_async

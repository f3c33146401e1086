"""The same stream against the running services: `plaudit up` as a child process, users and thumbs over gRPC.

Here fine-tuning jobs run beside, and thumbs come faster than users give them, so less of them is learned per thumb than
where a job ends before the next thumb.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.learning.whole_loop import loop_settings
from plaudit.client import AsyncClient
from plaudit.compose.learner import job_launcher
from plaudit.compose.paths import learner_dir
from plaudit.compose.registry import model_registry
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.settings import Settings
from plaudit.demo.drive import drive
from plaudit.demo.report import Answer, Failure
from plaudit.demo.request_pacing import RequestPacing
from plaudit.demo.services import DemoFailed, services, toml
from plaudit.demo.task import SPEC, Kind, collect
from plaudit.demo.users import traffic
from plaudit.demo.view import TrafficState

RATE: Final = 60.0
"""Requests a second."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """Answers that users got.

    Attributes:
        answers, failures: of all requests.
        duration_s: from the first to the last.
    """

    registry: ModelRegistry
    settings: Settings
    answers: list[Answer]
    failures: list[Failure]
    duration_s: float


def serve_stream(
    folder: Path,
    begin: Callable[[ModelRegistry], None],
    new_kind: Kind,
    thumbs: int,
    *,
    seed: int,
    sections: Mapping[str, Mapping[str, Any]],
) -> Streamed:
    """Serve one stream.

    Args:
        folder: made; data directory and configuration are in it.
        begin: makes version 1 live in the registry it is given.
        sections: of `plaudit.toml`, as JSON could say them.

    Raises:
        DemoFailed: the services did not start, ended early, or did not drain.
    """
    # Any port will do; and what was learned is served though less than a batch is new.
    sections = {
        **sections,
        "serving": {"port": 0, "metrics_port": 0},
        "learner": {**sections["learner"], "metrics_port": 0, "max_wait_s": 2.0},
    }
    folder.mkdir(parents=True, exist_ok=True)
    settings = loop_settings(folder / "data", SPEC.to_dict(), sections)
    registry = model_registry(settings)
    begin(registry)
    config = folder / "plaudit.toml"
    config.write_text(toml({"data_dir": str(folder / "data"), "model": SPEC.to_dict(), **sections}), encoding="utf-8")
    watched = TrafficState(total=thumbs, started_s=time.time())
    asyncio.run(_drive(config, settings.data_dir, folder / "services.log", watched, new_kind, seed))
    jobs = job_launcher(settings, SPEC.name)
    for run_dir in (learner_dir(settings, SPEC.name) / "runs").glob("*"):
        jobs.cancel(run_dir)
    return Streamed(registry, settings, watched.answers, watched.failures, time.time() - watched.started_s)


async def _drive(config: Path, data_dir: Path, log: Path, watched: TrafficState, new_kind: Kind, seed: int) -> None:
    requests = traffic(await asyncio.to_thread(collect, "traffic", seed), seed=seed, new_kind=new_kind)
    async with services(config, data_dir, log, lambda _: None) as (target, ended), AsyncClient(target) as client:
        watched.started_s = time.time()
        driving = asyncio.create_task(
            drive(client, requests, watched, pacing=RequestPacing(1.0 / RATE), id_prefix="benchmark-")
        )
        await asyncio.wait([driving, ended], return_when=asyncio.FIRST_COMPLETED)
        if not driving.done():
            driving.cancel()
            raise DemoFailed(f"the services ended while users were asking; see {log}")
        driving.result()

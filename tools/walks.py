"""Walks: which rooms of a service one Predict request and one head refresh pass, from the calls made while they run.

A visit is a run of calls into one room (a folder of modules, or a module beside folders) without a call into another
room of the service between them; a return is a visit to a room that was visited before. Calls into the words of core,
the maths of plaudit_models, the adapters and the metrics are left out. Both run for real, on the tests' tiny model:

    PYTHONPATH=tests:. python tools/walks.py
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from prometheus_client import CollectorRegistry

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.client import Client
from plaudit.compose.runtime import content_limits
from plaudit.core.prediction_id import PredictionIds
from plaudit.core.settings import ServingSettings, Settings
from plaudit.learner.online.refresh import HeadRefresher
from plaudit.serving.grpc.prediction_servicer import PredictionServicer
from plaudit.serving.server import InferenceServer
from plaudit.serving.telemetry.metrics import ServingMetrics
from support.builders import tiny_bundle, tiny_spec
from support.loop_world import World
from support.serving_harness import KEY, Registries, go_live

SERVICES: Final = "/services/plaudit/"
MEASURING: Final = ("telemetry", "metrics", "tracing")


@dataclass
class Walk:
    """The calls below one function, on the thread that calls it.

    Attributes:
        entry: code of the function.
        package: folder of the service.
        calls: room of every call, in order.
    """

    entry: CodeType
    package: str
    calls: list[str] = field(default_factory=list)
    depth: int = 0
    thread: int = 0
    done: bool = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code is self.entry and not self.done:
            self.depth += {"call": 1, "return": -1}.get(event, 0)
            self.done = self.depth == 0 and event == "return"
            self.thread = threading.get_ident()
        if self.depth and event == "call" and self.thread == threading.get_ident():
            module = frame.f_code.co_filename.partition(f"{SERVICES}{self.package}/")[2]
            room = module.removesuffix(".py").partition("/")[0]
            if room and room not in MEASURING:
                self.calls.append(room)

    def report(self, title: str) -> str:
        visits = [room for i, room in enumerate(self.calls) if i == 0 or self.calls[i - 1] != room]
        return f"{title}: {' > '.join(visits)}; {len(visits) - len(set(visits))} returns"


@contextmanager
def walking(walk: Walk) -> Iterator[None]:
    """Every thread that starts within, and this one, tells ``walk`` of its calls."""
    threading.setprofile(walk)
    sys.setprofile(walk)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def predict_walk(folder: Path) -> Walk:
    """Walk of one ``Predict`` over a real channel, below the servicer's method."""
    registry = DirectoryRegistry(folder / "registry", tiny_spec().name)
    tiny_bundle(folder / "one")
    registry.publish(folder / "one")
    go_live(registry, 1)
    walk = Walk(PredictionServicer.Predict.__code__, "serving")
    log = SqliteLog(folder / "log.sqlite", "NORMAL")
    serving = ServingSettings(port=0, metrics_port=0)
    with walking(walk):
        server = InferenceServer(
            Registries(registry),
            log,
            OnnxRuntime("cpu"),
            PredictionIds(KEY, 3600.0),
            settings=serving,
            limits=content_limits(Settings(model={}, serving=serving)),
            metrics=ServingMetrics(CollectorRegistry()),
        )
        server.start()
        with Client(f"127.0.0.1:{server.port}") as client:
            client.predict({"question": "what is it"})
        server.stop()
    log.close()
    return walk


def refresh_walk(folder: Path) -> Walk:
    """Walk of one head refresh, from the look whether it is due to the version that serves."""
    world = World(folder, settings={"learner": {"batch": 8}})
    world.first_version()
    learner = world.learner()
    world.traffic(64, lambda decision: decision.action == "dog")
    learner.step()  # the first refresh also reads the latest contexts from the store
    world.traffic(64, lambda decision: decision.action == "dog")
    walk = Walk(HeadRefresher.step.__code__, "learner")
    with walking(walk):
        learner.step()
    learner.close()
    world.close()
    return walk


def main() -> None:
    for title, walked in (("Predict", predict_walk), ("head refresh", refresh_walk)):
        with tempfile.TemporaryDirectory() as folder:
            print(walked(Path(folder)).report(title))


if __name__ == "__main__":
    main()

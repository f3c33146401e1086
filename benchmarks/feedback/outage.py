"""The broker is killed under 500 feedback/s and comes back after a minute.

Every thumb is about a prediction that was answered just before. Nothing acknowledged may be missing in the log, no
Predict may fail, and once the broker is back, what was spooled must be gone within a minute, while feedback goes on.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from benchmarks.feedback.deployed import Serving, serving
from benchmarks.measure import Measure
from plaudit.client import Client, ClientError, Prediction, feedback
from plaudit.compose.log import event_log
from plaudit.compose.settings import load_settings
from plaudit.core.events import Feedback, Topic
from support.kafka_broker import Cluster

_FEEDBACK_PER_S = 500.0
_PREDICTIONS_PER_S = 50.0
_BEFORE_S = 5.0
_DRAINED_S = 60.0
_SPOOLED = "plaudit_serving_spool_events"


def run(*, quick: bool) -> list[Measure]:
    away_s = 10.0 if quick else 60.0
    with (
        tempfile.TemporaryDirectory() as made,
        Cluster(Path(made) / "kafka") as cluster,
        serving(Path(made), cluster) as server,
    ):
        load = Load(server.address)
        with load.running():
            time.sleep(_BEFORE_S)
            cluster.brokers[0].kill()
            time.sleep(away_s)
            spooled = server.metric(_SPOOLED)
            cluster.brokers[0].start()
            back_s = time.monotonic()
            while server.metric(_SPOOLED) > 0 and time.monotonic() - back_s < 3 * _DRAINED_S:
                time.sleep(0.05)
            drained_s = time.monotonic() - back_s
        lost = len(load.acknowledged - recorded(server))
    slowest_s = max(load.waited_s)
    said = len(load.acknowledged)
    return [
        Measure("acknowledged feedback lost", lost, 0, "at_most", note=f"of {said}; the broker was away {away_s:g} s"),
        Measure("feedback refused or failed", load.refused, 0, "at_most", note=f"slowest answer {slowest_s:.2f} s"),
        Measure("feedback sent", said / load.took_s, 0.95 * _FEEDBACK_PER_S, unit="1/s"),
        Measure("Predict failed", load.failed, 0, "at_most", note=f"of {load.predictions}"),
        Measure(
            "backlog drained", drained_s, _DRAINED_S, "at_most", note=f"{spooled:.0f} events, while more came", unit="s"
        ),
    ]


class Load:
    """Predictions, and thumbs about the latest of them, each at a fixed rate independent of the answers.

    Attributes:
        acknowledged: ids of feedback that the service called durable.
        waited_s: seconds from when each feedback was due to be sent to its acknowledgement.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._ending = threading.Event()
        self._latest: deque[Prediction] = deque(maxlen=100)
        self.acknowledged: set[str] = set()
        self.waited_s: list[float] = []
        self.refused = self.failed = self.predictions = 0
        self.took_s = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with Client(self._address) as client:
            self._latest.append(client.predict({"question": "which animal?"}))  # anyone's to rate
            began_s = time.monotonic()
            threads = [threading.Thread(target=work, args=(client,)) for work in (self._predict, self._say)]
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._ending.set()
                self.took_s = time.monotonic() - began_s
                for thread in threads:
                    thread.join()

    def _predict(self, client: Client) -> None:
        for _ in self._paced(_PREDICTIONS_PER_S):
            self.predictions += 1
            try:
                self._latest.append(client.predict({"question": "which animal?"}))
            except ClientError:
                self.failed += 1

    def _say(self, client: Client) -> None:
        due: deque[float] = deque()

        def pieces() -> Iterator[object]:
            for number, due_s in enumerate(self._paced(_FEEDBACK_PER_S)):
                due.append(due_s)
                latest = self._latest[number % len(self._latest)]
                yield feedback.thumbs_up(latest, user_id=f"user {number}", feedback_id=f"f{number}")

        for answer in client.stream_feedback(pieces(), timeout_s=3600.0):  # type: ignore[arg-type]
            self.waited_s.append(time.monotonic() - due.popleft())
            if answer.error:
                self.refused += 1
            else:
                self.acknowledged.add(answer.feedback_id)

    def _paced(self, per_s: float) -> Iterator[float]:
        """Due times, each once it has come."""
        due_s = time.monotonic()
        while not self._ending.is_set():
            time.sleep(max(0.0, due_s - time.monotonic()))
            yield due_s
            due_s += 1.0 / per_s


def recorded(server: Serving) -> set[str]:
    """Ids of all feedback in the log."""
    found = set()
    with (
        contextlib.closing(event_log(load_settings(server.config))) as log,
        contextlib.closing(log.reader("recorded", [Topic.FEEDBACK], start=dict)) as reader,
    ):
        while reader.lag():
            events = [record.event for record in reader.poll(10_000, 10.0)]
            found |= {event.feedback_id for event in events if isinstance(event, Feedback)}
    return found

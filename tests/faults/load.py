"""Users who send requests and feedback, and repeat feedback until it is acknowledged, whatever happens to the
service.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Final

from plaudit.client import Client, ClientError, feedback

_PAUSE_S: Final = 0.1
_TIMEOUT_S: Final = 3.0


class Users:
    """Threads, each a user after the other: predict, thumb, and every fifth time the opposite thumb.

    Attributes:
        acknowledged: ids of feedback that the service called durable.
        failures: calls that failed and, if feedback, were made again.
    """

    def __init__(self, address: str, seed: int, *, threads: int = 2, per_s: float = 15.0) -> None:
        self._address = address
        self._pause_s = threads / per_s
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self.acknowledged: set[str] = set()
        self.predictions = 0
        self.failures = 0
        self._threads = [
            threading.Thread(target=self._work, args=(f"{number}", random.Random(seed + number)))
            for number in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop, once all feedback is acknowledged."""
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def so_far(self) -> set[str]:
        with self._lock:
            return set(self.acknowledged)

    def _work(self, name: str, rng: random.Random) -> None:
        turn = 0
        with Client(self._address, timeout_s=_TIMEOUT_S) as client:
            while not self._ending.is_set():
                turn += 1
                user = f"user {name}-{turn}"
                try:
                    asked = client.predict({"question": f"which animal is number {turn}?"}, user_id=user)
                except ClientError:
                    self._failed()
                    continue
                self.predictions += 1
                self._say(client, asked.prediction_id, user, f"{name}-{turn}-a", rng.random() < 0.6)
                if turn % 5 == 0:
                    self._say(client, asked.prediction_id, user, f"{name}-{turn}-b", rng.random() < 0.6)
                time.sleep(self._pause_s)

    def _say(self, client: Client, prediction_id: str, user: str, id_: str, up: bool) -> None:
        thumb = feedback.thumbs_up if up else feedback.thumbs_down
        piece = thumb(prediction_id, user_id=user, feedback_id=id_)
        while True:
            try:
                client.send_feedback(piece)
            except ClientError:
                self._failed()
            else:
                with self._lock:
                    self.acknowledged.add(id_)
                return

    def _failed(self) -> None:
        with self._lock:
            self.failures += 1
        time.sleep(_PAUSE_S)

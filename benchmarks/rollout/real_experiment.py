"""Experiments over running services: `plaudit up`, and users over gRPC at 50 a second who like one version less.

The accelerated experiments (experiments.py) count seconds of feedback and nothing else. Here it also takes what it
takes from a thumb to the learner, to a verdict, to the rollout: reported as the delay from the last thumb that the
verdict rests on to the withdrawal. Users are the same: each has a probability of a thumb up of their own, and judges
the version that served them, whatever it answered.
"""

from __future__ import annotations

import math
import re
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.measure import Measure
from benchmarks.rollout.deployment_of import deployed_with_two
from benchmarks.rollout.experiments import FEEDBACK_PER_S, SHARE, USERS, WITHIN_S, WORSE, thumb_up_probabilities
from plaudit.client import Client
from support.deployment import PLAUDIT, Service

RUNS: Final = 12
AT_ONCE: Final = 3
GOAL_RUNS: Final = 11
"""Of twelve: with a probability of 95 % each, all twelve are in time in every second benchmark only."""
SETTINGS: Final = "[canary]\nmax_events = 20000\n[finetune]\nenabled = false\n"


@dataclass(frozen=True, slots=True)
class Ended:
    """Result of one experiment.

    Attributes:
        took_s: seconds from the start to the withdrawal; infinite if there was none in time.
        sent: number of thumbs sent.
        counted: number of thumbs that the verdict rests on.
        per_s: thumbs a second.
    """

    took_s: float
    sent: int
    counted: int
    per_s: float
    reason: str

    @property
    def delay_s(self) -> float:
        return (self.sent - self.counted) / self.per_s


def run(*, quick: bool) -> list[Measure]:
    runs, within_s = (2, 10.0) if quick else (RUNS, WITHIN_S)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ended = list(pool.map(lambda seed: one(seed, within_s), range(runs)))
    took_s = sorted(each.took_s for each in ended)
    back = [each for each in ended if each.took_s < math.inf]
    slowest = max(ended, key=lambda each: each.took_s)
    rate = min(each.per_s for each in ended)
    return [
        Measure(
            f"worse by 10 points, over running services, rolled back within 2 minutes, of {runs} runs",
            sum(each.took_s <= WITHIN_S for each in ended),
            GOAL_RUNS,
            note=f"{', '.join(f'{each:.0f}' for each in took_s)} s; {rate:.0f} thumbs/s in the slowest of the clients",
        ),
        Measure("time until then, median", statistics.median(took_s), unit="s"),
        Measure("time until then, worst", took_s[-1], note=slowest.reason or "still in an experiment", unit="s"),
        Measure(
            "from the last thumb that the verdict rests on to the withdrawal, median",
            statistics.median(each.delay_s for each in back) if back else math.nan,
            note=f"worst {max((each.delay_s for each in back), default=math.nan):.1f}",
            unit="s",
        ),
    ]


def one(seed: int, within_s: float) -> Ended:
    """Result of one deployment with one experiment."""
    rng = np.random.default_rng(seed)
    liked = thumb_up_probabilities(rng)
    with tempfile.TemporaryDirectory() as folder:
        config, registry = deployed_with_two(Path(folder), SETTINGS)
        text = config.read_text(encoding="utf-8").replace("batch = 1\n", "batch = 1000000\nmax_wait_s = 1000000.0\n")
        config.write_text(text, encoding="utf-8")
        up = Service([*PLAUDIT, "up", "--config", str(config), "--json"])
        try:
            address = up.ready("serve", "learn")["serve"]["address"]
            with Client(address) as client:
                client.start_canary(2, SHARE, reason="bench-rollout")
                began_s, sent = time.monotonic(), 0
                while registry.rollout().candidate is not None and time.monotonic() - began_s < within_s:
                    user = int(rng.integers(USERS))
                    answer = client.predict({"question": "which animal"}, user_id=f"user {user} of {seed}")
                    up_it_is = rng.random() < liked[user] - (WORSE if answer.version == 2 else 0.0)
                    client.thumbs_up(answer) if up_it_is else client.thumbs_down(answer)
                    sent += 1
                    time.sleep(max(0.0, began_s + sent / FEEDBACK_PER_S - time.monotonic()))
                took_s = time.monotonic() - began_s
            rollout = registry.rollout()
        finally:
            up.kill()
    if rollout.candidate is not None:
        return Ended(math.inf, sent, 0, sent / took_s, "")
    counted = sum(map(int, re.findall(r"% of (\d+) by", rollout.reason)))
    return Ended(took_s, sent, counted, sent / took_s, rollout.reason)

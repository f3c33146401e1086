"""One trial over running services: `plaudit up`, and users over gRPC at 50 a second who like one version less."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.measure import Measure
from benchmarks.rollout.deployment_of import deployed_with_two
from benchmarks.rollout.trials import FEEDBACK_PER_S, LIKED, SHARE, USERS, WITHIN_S, WORSE
from deployment import PLAUDIT, Service
from plaudit.client import Client

SEED: Final = 0
SETTINGS: Final = "[canary]\nmax_events = 20000\n[finetune]\nenabled = false\n"


def run(*, quick: bool) -> list[Measure]:
    within_s = 10.0 if quick else WITHIN_S
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory() as folder:
        config, registry = deployed_with_two(Path(folder), SETTINGS)
        text = config.read_text(encoding="utf-8").replace("batch = 1\n", "batch = 1000000\nmax_wait_s = 1000000.0\n")
        config.write_text(text, encoding="utf-8")
        up = Service([*PLAUDIT, "up", "--config", str(config), "--json"])
        try:
            address = up.event(event="ready", service="serve")["address"]
            up.event(event="ready", service="learn")
            with Client(address) as client:
                client.start_canary(2, SHARE, reason="bench-rollout")
                began_s, sent = time.monotonic(), 0
                while registry.rollout().candidate is not None and time.monotonic() - began_s < within_s:
                    answer = client.predict({"question": "which animal"}, user_id=f"user {rng.randrange(USERS)}")
                    liked = rng.random() < LIKED - (WORSE if answer.version == 2 else 0.0)
                    client.thumbs_up(answer) if liked else client.thumbs_down(answer)
                    sent += 1
                    time.sleep(max(0.0, began_s + sent / FEEDBACK_PER_S - time.monotonic()))
                took_s = time.monotonic() - began_s
            rollout = registry.rollout()
        finally:
            up.kill()
    back = rollout.candidate is None
    return [
        Measure(
            "worse by 10 points, over running services, rolled back after, s",
            took_s if back else float("nan"),
            WITHIN_S,
            "at_most",
            note=f"{sent} thumbs at {sent / took_s:.0f}/s; {rollout.reason if back else 'still on trial'}",
        )
    ]

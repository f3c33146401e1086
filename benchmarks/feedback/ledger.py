"""GetReceipt and its memory in a server whose model has had 500,000 rollouts: two weeks of head refreshes.

Every line of the ledger is one of the release before, which knew of no marks in it: the server marks them beside its
requests once it serves the last of them, and receipts are asked for after that. Receipts are of feedback that versions
at the end of the ledger, and at its beginning, have learned from.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.feedback.deployed import Serving, serving
from benchmarks.measure import Measure
from plaudit.client import Client, feedback
from plaudit.compose.registry import model_registry
from plaudit.compose.settings import load_settings
from plaudit.compose.store import experience_store
from plaudit.core.experience import FeedbackState
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.ports.store import IngestBatch, StoredFeedback
from plaudit.core.rollout import Change, refresh
from plaudit.core.settings import Settings
from support import builders

_RECEIPTS: Final = 500
_SETTLED_S: Final = 10.0
"""Time in which the server marks the ledger, beside its requests."""
_GOAL_MS: Final = 5.0
_GOAL_MIB: Final = 20.0


def run(*, quick: bool) -> list[Measure]:
    rollouts = 20_000 if quick else 500_000
    with tempfile.TemporaryDirectory() as made, serving(Path(made)) as server:
        settings = load_settings(server.config)
        registry = model_registry(settings)
        ids = _joined(server, settings)
        with Client(server.address) as client:
            client.receipt(ids[0])  # opens the store
            before = _resident_mib(server)
            live = _learned_by_heads(settings, registry, Path(made), rollouts)
            while client.predict({"question": "which animal?"}, user_id="ada").version != live:
                time.sleep(0.05)
            time.sleep(_SETTLED_S)
            first_ms = _receipt_ms(client, ids[0])
            each_ms = [_receipt_ms(client, ids[number % len(ids)]) for number in range(_RECEIPTS)]
            grown = _resident_mib(server) - before
            state = client.receipt(ids[0]).state
    if state != "live":
        raise RuntimeError(f"the receipt says {state!r}")
    note = f"median of {_RECEIPTS}, p99 {sorted(each_ms)[int(0.99 * _RECEIPTS)]:.2f} ms; {rollouts} rollouts"
    return [
        Measure("GetReceipt", median(each_ms), _GOAL_MS, "at_most", note=note, unit="ms"),
        Measure("memory of receipts", grown, _GOAL_MIB, "at_most", note=f"{rollouts} rollouts", unit="MiB"),
        Measure("first GetReceipt", first_ms, note="after the server had marked the ledger", unit="ms"),
    ]


def _joined(server: Serving, settings: Settings) -> list[str]:
    """Ids of feedback that the log has, and the store as joined in its first batch."""
    ids = [f"f{number}" for number in range(10)]
    with Client(server.address) as client:
        answer = client.predict({"question": "which animal?"}, user_id="ada")
        for feedback_id in ids:
            client.send_feedback(feedback.thumbs_up(answer, feedback_id=feedback_id))
    store = experience_store(settings, settings.spec().name)
    sent = [builders.some_feedback(answer.prediction_id, feedback_id=feedback_id) for feedback_id in ids]
    store.save_batch(IngestBatch(feedback=[StoredFeedback(each, FeedbackState.JOINED) for each in sent]))
    store.close()
    return ids


def _learned_by_heads(settings: Settings, registry: ModelRegistry, folder: Path, rollouts: int) -> int:
    """20 heads that have learned from the feedback, and a ledger of that many rollouts up to the last one.

    Returns:
        The version that is live by then.
    """
    store = experience_store(settings, settings.spec().name)
    data = {"store_id": store.intake_stats().store_id, "batches": 1}
    store.close()
    heads = []
    for number in range(20):
        made = folder / f"head-{number}"
        builders.tiny_head_refresh(made, registry.folder(1), prefer="dog", data=data)
        heads.append(registry.publish(made).version)
    home = settings.data_dir / "registry" / registry.model
    rollout = registry.rollout()
    with (home / "ledger.jsonl").open("a", encoding="utf-8") as lines:
        while rollout.generation < rollouts:
            version = heads[rollout.generation * len(heads) // rollouts]
            reason = f"64 new or changed experiences since version {rollout.live}"
            rollout = refresh(rollout, version, Change("learner", 1.7e9 + 2.5 * rollout.generation, reason))
            lines.write(json.dumps(asdict(rollout)) + "\n")
    fresh = home / ".rollout.json"
    fresh.write_text(json.dumps(asdict(rollout)), encoding="utf-8")
    fresh.replace(home / "rollout.json")
    return heads[-1]


def _receipt_ms(client: Client, feedback_id: str) -> float:
    began_s = time.perf_counter()
    client.receipt(feedback_id)
    return (time.perf_counter() - began_s) * 1e3


def _resident_mib(server: Serving) -> float:
    pages = int(Path(f"/proc/{server.pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20

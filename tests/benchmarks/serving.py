"""How much of the raw ONNX Runtime rate does `Predict` reach? Ratios of rates measured in one run.

A fusion policy of the demo's shape with random weights; `plaudit serve` on one core, a closed-loop client on the
other, and the raw rate on the server's core. Run it with `make bench`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from plaudit import compose
from plaudit.client import AsyncClient
from plaudit.core.rollout import Change, promote
from plaudit.core.settings import load_settings
from plaudit.demo.task import SPEC, collect, evaluation_examples
from plaudit_models.bundle import TOKENIZER, Manifest
from plaudit_models.preprocess import assemble, decode, train_tokenizer
from plaudit_models.training.export import export_version
from plaudit_models.training.fusion import FusionConfig, FusionPolicy

SECONDS = 4.0
CONCURRENCY = (1, 8, 32)


def main() -> None:
    pool = collect("test", 0, sounds_per_digit={"train": 1, "val": 1, "traffic": 1, "test": 2})
    examples = evaluation_examples(pool, per_kind=20, seed=0)
    tokenizer = train_tokenizer([example.question for example in examples])
    contents = [{"image": e.image, "audio": e.audio, "question": e.question} for e in examples]
    rows = [
        {name: decode(c[name], SPEC.modalities[name], name=name, tokenizer=tokenizer) for name in SPEC.modalities}
        for c in contents
    ]
    with tempfile.TemporaryDirectory() as made:
        data_dir = Path(made)
        config = data_dir / "plaudit.toml"
        config.write_text(f'data_dir = "{data_dir}"\n{_model_table()}', encoding="utf-8")
        settings = load_settings(config)
        folder = data_dir / "made"
        folder.mkdir()
        tokenizer.save(str(folder / TOKENIZER))
        model = FusionPolicy(SPEC, FusionConfig(vocabulary_size=tokenizer.get_vocab_size())).eval()
        manifest = Manifest(spec=SPEC, kind="imported", created_at_s=time.time(), files={}, floor=0.02)
        export_version(model, folder, manifest, assemble(SPEC, rows[:16]))
        registry = compose.model_registry(settings)
        version = registry.publish(folder).version
        registry.set_rollout(promote(registry.rollout(), version, Change("benchmark", time.time(), "benchmark")))
        os.sched_setaffinity(0, {0})
        raw = {
            size: _raw_rate(compose.model_runtime(settings), registry.folder(version), rows, size) for size in (1, 4, 8)
        }
        best = max(raw.values())
        os.sched_setaffinity(0, {1})
        rates = _served_rates(config, contents)
    report: dict[str, Any] = {"raw_per_s": raw, "predict_per_s": rates}
    report["share_of_best_raw"] = {n: rate["per_s"] / best for n, rate in rates.items()}
    print(f"raw ONNX Runtime on one core: {', '.join(f'{rate:.0f}/s at batch {size}' for size, rate in raw.items())}")
    for n, rate in rates.items():
        print(
            f"Predict, decoding included, {n} at once: {rate['per_s']:.0f}/s = {rate['per_s'] / best:.0%} of raw, "
            f"p50 {rate['p50_ms']:.1f} ms, p99 {rate['p99_ms']:.1f} ms"
        )
    print(json.dumps(report))


def _model_table() -> str:
    lines = ["[model]", f'name = "{SPEC.name}"', f"actions = {json.dumps(list(SPEC.actions))}"]
    for name, fields in SPEC.to_dict()["modalities"].items():
        lines += [f"[model.modalities.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in fields.items())]
    return "\n".join(lines) + "\n"


def _raw_rate(runtime: Any, folder: Path, rows: list[dict[str, Any]], size: int) -> float:
    """Requests a second of trunk and head on ready inputs, one batch after another."""
    model = runtime.load(folder)
    batches = [assemble(SPEC, rows[i : i + size]) for i in range(0, len(rows) - size, size)]
    for inputs in batches:
        model.head(*model.trunk(inputs))
    done, began_s = 0, time.perf_counter()
    while time.perf_counter() - began_s < SECONDS / 2:
        model.head(*model.trunk(batches[done % len(batches)]))
        done += 1
    return done * size / (time.perf_counter() - began_s)


def _served_rates(config: Path, contents: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    command = [sys.executable, "-m", "plaudit", "serve", "--config", str(config), "--json"]
    environment = os.environ | {"PLAUDIT_SERVING__PORT": "0", "PLAUDIT_SERVING__METRICS_PORT": "0"}
    server = subprocess.Popen(
        ["taskset", "-c", "0", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    )
    assert server.stdout is not None
    try:
        address = json.loads(server.stdout.readline())["address"]
        return {n: asyncio.run(_closed_loop(address, contents, n)) for n in CONCURRENCY}
    finally:
        server.terminate()
        server.wait()


async def _closed_loop(address: str, contents: list[dict[str, Any]], concurrency: int) -> dict[str, float]:
    took_s: list[float] = []

    async def user(number: int) -> None:
        at = number
        while time.perf_counter() < until_s:
            began_s = time.perf_counter()
            await client.predict(contents[at % len(contents)], user_id=f"user {number}")
            took_s.append(time.perf_counter() - began_s)
            at += concurrency

    async with AsyncClient(address) as client:
        await client.predict(contents[0])
        began_s = time.perf_counter()
        until_s = began_s + SECONDS
        await asyncio.gather(*(user(number) for number in range(concurrency)))
        per_s = len(took_s) / (time.perf_counter() - began_s)
    p50, p99 = np.percentile(took_s, [50, 99]) * 1e3
    return {"per_s": per_s, "p50_ms": float(p50), "p99_ms": float(p99)}


if __name__ == "__main__":
    main()

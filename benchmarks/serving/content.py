"""`Predict` with JPEG + WAV + text against the same process calling decode and model itself, on the same core.

Our own fusion policy with random weights, in two sizes.
"""

from __future__ import annotations

import io
import tempfile
import time
import wave
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import Measure
from benchmarks.serving import processes
from benchmarks.serving.load import write_requests
from benchmarks.serving.requests import PREDICT
from plaudit.compose.registry import model_registry
from plaudit.core.rollout import Change, promote
from plaudit.core.settings import Settings
from plaudit.v1 import content_pb2, prediction_pb2
from plaudit_models.bundle import TOKENIZER, Manifest
from plaudit_models.preprocess import assemble, decode, train_tokenizer
from plaudit_models.spec import AudioModality, ImageModality, ModelSpec, TextModality
from plaudit_models.training.export import export_version
from plaudit_models.training.networks.fusion import FusionConfig, FusionPolicy

SHARE = 0.85
SIZES = {"small": (96, 3, 8), "base": (256, 8, 16)}
"""Width, number of layers and tokens per modality, by name."""
TEXT = ("is it a cat or a dog?", "what do you hear", "which animal barks", "say what you see, please")


def run(*, quick: bool) -> list[Measure]:
    rounds, seconds = (1, 1.0) if quick else (3, 4.0)
    measures = []
    for name, sizes in SIZES.items():
        with tempfile.TemporaryDirectory() as made:
            data_dir = Path(made)
            requests = _deploy(data_dir, name, *sizes)
            found = [_round(data_dir, name, requests, seconds) for _ in range(rounds)]
        measures.append(_measure(name, found))
    return measures


def _measure(name: str, rounds: list[dict[str, float]]) -> Measure:
    shares = [each["per_s"] / each["itself_per_s"] for each in rounds]
    per_s, itself_per_s, cpu_us, itself_cpu_us = (
        median(each[key] for each in rounds) for key in ("per_s", "itself_per_s", "server_cpu_us", "itself_cpu_us")
    )
    note = (
        f"{per_s:.0f} of {itself_per_s:.0f}/s; {cpu_us:.0f} µs of CPU a request, in-process {itself_cpu_us:.0f}; "
        f"rounds {min(shares):.2f} to {max(shares):.2f}"
    )
    return Measure(f"{name}: share of decode + model in-process", median(shares), SHARE, note=note)


def _round(data_dir: Path, name: str, requests: Path, seconds: float) -> dict[str, float]:
    before = _in_process(data_dir, name, seconds)
    with processes.serving(data_dir) as server:
        options = ("--seconds", seconds, "--warm", 1.0, "--concurrency", 32, "--server-pid", server.pid)
        served = processes.run("load", server.address, PREDICT, requests, *options, core=processes.CLIENT_CORE)
    if set(served["codes"]) != {"OK"}:
        raise RuntimeError(f"not all were answered: {served['codes']}")
    after = _in_process(data_dir, name, seconds)
    return {key: served[key] for key in ("per_s", "server_cpu_us")} | {
        f"itself_{key}": mean([before[key], after[key]]) for key in before
    }


def _in_process(data_dir: Path, name: str, seconds: float) -> dict[str, float]:
    processes.settle()
    arguments = (model_registry(Settings(data_dir=data_dir), name).folder(1), data_dir / "requests", seconds)
    found: dict[str, float] = processes.run("in_process", *arguments, core=processes.SERVER_CORE)
    return found


def _deploy(data_dir: Path, name: str, width: int, layers: int, tokens: int) -> Path:
    spec = ModelSpec(
        name,
        {"image": ImageModality(64, 64), "audio": AudioModality(16_000, 0.5), "text": TextModality(16)},
        tuple(f"answer {number}" for number in range(20)),
    )
    tokenizer = train_tokenizer(TEXT)
    contents: list[dict[str, Any]] = [
        {"image": _jpeg(number), "audio": _wav(number), "text": TEXT[number % len(TEXT)]} for number in range(16)
    ]
    folder = data_dir / "made"
    folder.mkdir()
    tokenizer.save(str(folder / TOKENIZER))
    config = FusionConfig(
        vocabulary_size=tokenizer.get_vocab_size(), width=width, layers=layers, tokens_per_modality=tokens
    )
    model = FusionPolicy(spec, config).eval()
    rows = [
        {
            modality: decode(content[modality], spec.modalities[modality], name=modality, tokenizer=tokenizer)
            for modality in content
        }
        for content in contents
    ]
    manifest = Manifest(spec=spec, kind="pretrained", created_at_s=time.time(), files={}, floor=0.02)
    export_version(model, folder, manifest, assemble(spec, rows[:8]))
    registry = model_registry(Settings(data_dir=data_dir), name)
    version = registry.publish(folder).version
    registry.set_rollout(promote(registry.rollout(), version, Change("benchmark", time.time(), "benchmark")))
    messages = [
        prediction_pb2.PredictRequest(
            user_id=f"user {number}",
            content={
                "image": content_pb2.Content(image=content["image"]),
                "audio": content_pb2.Content(audio=content["audio"]),
                "text": content_pb2.Content(text=content["text"]),
            },
        )
        for number, content in enumerate(contents)
    ]
    write_requests(data_dir / "requests", [message.SerializeToString() for message in messages])
    return data_dir / "requests"


def _jpeg(seed: int) -> bytes:
    """96 × 96, smooth with some grain, as a small photo is."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
    grain = np.asarray(coarse, np.int16) + rng.integers(-8, 9, (96, 96, 3))
    file = io.BytesIO()
    Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def _wav(seed: int) -> bytes:
    """Half a second of tones at 16 kHz."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(8000) / 16_000
    tones = sum(np.sin(2 * np.pi * pitch * time_s) for pitch in rng.uniform(100, 2000, 4))
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes((tones * 8000 / 4).astype("<i2").tobytes())
    return file.getvalue()

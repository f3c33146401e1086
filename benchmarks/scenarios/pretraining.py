"""Pre-training as users do it: a data folder and a spec in, a version and its accuracy on the test split out."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.settings import EncoderSettings
from plaudit.learner.finetuning.pretraining import pretrain_and_publish
from plaudit_models.spec import Modality, ModelSpec
from plaudit_models.training.config import PretrainConfig

SHARED: Final = Path(__file__).parents[3] / "shared/data"
QUICK_ROWS: Final = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled row: ``content`` by modality, text or an encoded sound."""

    split: str
    action: str
    content: Mapping[str, str | bytes]


@dataclass(frozen=True, slots=True)
class Result:
    """Accuracy on the test split, and the time that training took, without the encoding of items."""

    accuracy: float
    rows: int
    training_s: float

    @property
    def note(self) -> str:
        return f"{self.rows} test rows, trained for {self.training_s:.0f} s"


def pretrained(
    rows: Sequence[Row],
    modalities: Mapping[str, Modality],
    *,
    encoders: Mapping[str, Path],
    config: PretrainConfig,
    quick: bool,
) -> Result:
    """Model of some modalities, trained on the rows that have them and measured on the test split.

    Args:
        encoders: folders of pretrained encoders, by modality; the others' are trained from nothing.
    """
    actions = tuple(sorted({row.action for row in rows}))
    if quick:
        rows = [row for split in ("train", "val", "test") for row in [r for r in rows if r.split == split][:QUICK_ROWS]]
        config = PretrainConfig(max_epochs=2, batch=config.batch)
    spec = ModelSpec(name="scenario", modalities=modalities, actions=actions)
    with tempfile.TemporaryDirectory(prefix="plaudit-scenario-") as scratch:
        folder = Path(scratch) / "data"
        _write(folder, rows, list(modalities))
        published = pretrain_and_publish(
            folder,
            spec,
            DirectoryRegistry(Path(scratch) / "registry", spec.name),
            now_s=0.0,
            floor=0.02,
            config=config,
            threads=1,
            encoders={name: EncoderSettings(path) for name, path in encoders.items()},
        )
    tested = sum(row.split == "test" for row in rows)
    return Result(published.accuracy.overall, tested, published.training.duration_s)


def _write(folder: Path, rows: Sequence[Row], modalities: Sequence[str]) -> None:
    folder.mkdir()
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "action", *modalities])
        for i, row in enumerate(rows):
            cells = []
            for name in modalities:
                content = row.content[name]
                if isinstance(content, bytes):
                    (folder / f"{i}-{name}").write_bytes(content)
                    content = f"{i}-{name}"
                cells.append(content)
            writer.writerow([row.split, row.action, *cells])

"""What bank customers want, among intents that no training row has: scored by their names, and by a person's words.

Reads shared/data beside the repository (see the SOURCE.md there); skipped where it is not.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tokenizers import Tokenizer

from plaudit_models.data.config import DEFAULT_DATA
from plaudit_models.data.loader import load_data_folder, tokenizer_for
from plaudit_models.data.rows import read_rows
from plaudit_models.preprocess import action_texts, tokenize_all
from plaudit_models.spec import ModelSpec, TextModality
from plaudit_models.training.config import PretrainConfig
from plaudit_models.training.networks.fusion import FusionConfig, FusionPolicy
from plaudit_models.training.pretrain import pretrain
from plaudit_models.training.schedule import use_threads
from support.programs import CANNOT_BE_HAD

DATA: Final = Path(__file__).parents[3] / "shared/data/intents/banking77.csv"
UNSEEN: Final = 15
"""Of 77 intents."""
STEPS: Final = 300

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.exists(), reason=f"{CANNOT_BE_HAD}shared/data beside the repository"),
]


def name_of(intent: str) -> str:
    return intent.replace("_", " ")


def test_intents_that_were_never_trained_are_found_by_their_text(tmp_path: Path) -> None:
    use_threads(1)
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rng = np.random.default_rng(0)
    intents = rng.permutation(sorted({row["intent"] for row in rows})).tolist()
    unseen, known = intents[:UNSEEN], sorted(intents[UNSEEN:])
    with (tmp_path / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "action", "text"])
        for i in rng.permutation(len(rows)).tolist():
            if rows[i]["intent"] in known and rows[i]["split"] in ("train", "val"):
                writer.writerow([rows[i]["split"], rows[i]["intent"], rows[i]["text"]])
    spec = ModelSpec("bank", {"text": TextModality(32)}, tuple(known), scores_text=True)
    tokenizer = tokenizer_for(read_rows(tmp_path, spec, DEFAULT_DATA))
    assert tokenizer is not None
    model = pretrain(
        load_data_folder(tmp_path, spec, "train", tokenizer),
        load_data_folder(tmp_path, spec, "val", tokenizer),
        fusion=FusionConfig(vocabulary_size=tokenizer.get_vocab_size()),
        config=PretrainConfig(max_steps=STEPS, validations=1),
        action_texts=action_texts(spec, tokenizer),
    ).model

    asked = [
        (row["text"], unseen.index(row["intent"])) for row in rows if row["intent"] in unseen and row["split"] == "test"
    ]
    said = [next(row["text"] for row in rows if row["intent"] == each and row["split"] == "train") for each in unseen]
    by_name = accuracy(model, tokenizer, asked, [name_of(each) for each in unseen])
    by_words = accuracy(model, tokenizer, asked, said)
    print(f"{len(asked)} questions about {UNSEEN} unseen intents: {by_name:.3f} by name, {by_words:.3f} by one wording")
    # Chance is 0.067.
    assert by_name > 0.35
    assert by_words > 0.25


def accuracy(
    model: FusionPolicy, tokenizer: Tokenizer, asked: Sequence[tuple[str, int]], dynamic_actions: Sequence[str]
) -> float:
    def tokens(texts: Sequence[str]) -> torch.Tensor:
        ids: npt.NDArray[np.int64] = tokenize_all(texts, model.spec.dynamic_action_modality[1], tokenizer)
        return torch.from_numpy(ids)

    with torch.no_grad():
        text = tokens([question for question, _ in asked])
        embedding, _ = model.fuse({"text": model.encode("text", text)}, torch.ones(len(asked), 1))
        best = (embedding @ model.text_vectors(tokens(dynamic_actions)).T).argmax(dim=1).numpy()
    return float((best == np.array([label for _, label in asked])).mean())

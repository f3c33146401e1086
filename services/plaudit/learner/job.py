"""One fine-tuning job: ``python -m plaudit.learner.job RUN_DIR`` with the URL of the experience store on standard input
(see plaudit.core.runs for what is in the folder).

Reads experiences up to the snapshot, trains, exports a version folder, builds its head on the experiences as the new
trunk sees them. It writes to its run folder and nowhere else: judging and publishing what it made is the learner's
business. Beside pretraining.py this is the only module of the learner that imports torch.

Notation:
    n: experiences, m: number of modalities, u: unique items of one modality
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from plaudit.core.events import Content, EncodedContent, Features, TensorContent, TextContent
from plaudit.core.experience import Experience
from plaudit.core.ports import ExperienceStore, ModelRuntime
from plaudit.core.runs import CANDIDATE, ERROR, PROGRESS, RESULT, write_json
from plaudit.learner.contents import decode_contents
from plaudit.learner.description import FEATURES, PARENT, STATE, JobDescription, read_description, write_features
from plaudit.learner.evidence import evidence_of
from plaudit.learner.refresh import write_card
from plaudit.learner.versions import OpenVersion
from plaudit_models.bundle import TOKENIZER, TRUNK, TRUNK_GOLDEN, Manifest, read_manifest, seal
from plaudit_models.dataset import load_data_folder
from plaudit_models.preprocess import input_dtype, read_tokenizer
from plaudit_models.reward_model import empty_state
from plaudit_models.spec import BASE_LOGITS, EMBEDDING, ModelSpec
from plaudit_models.training.export import export_version, load_policy
from plaudit_models.training.finetune import Experiences, FinetuneProgress, FinetuneSettings, finetune

_NICENESS: Final = 10
"""Serving comes first on the processors that both use."""
_MISSING: Final = -1
_CHUNK: Final = 256


def run_job(run_dir: Path, store: ExperienceStore, runtime: ModelRuntime) -> None:
    """Do what ``job.json`` says; ``result.json`` is there when this returns.

    Raises:
        ValueError: there is nothing to train on.
        InvalidData: the rehearsal folder is wrong.
        FloatingPointError: training diverged.
        ExportMismatch: the graphs do not do what torch does.
    """
    task = read_description(run_dir)
    plan = task.plan
    torch.set_num_threads(plan.threads)
    parent = run_dir / PARENT
    before = read_manifest(parent)
    spec = before.spec
    tokenizer = read_tokenizer(parent / TOKENIZER) if TOKENIZER in before.files else None
    learned = [
        experience
        for experience in store.experiences(after=task.snapshot - plan.max_experiences, up_to=task.snapshot)
        if experience.judgement is not None and not experience.set_aside
    ]
    experiences, used = training_data(learned, store, spec, tokenizer, task)
    if len(experiences) == 0:
        raise ValueError(
            f"none of {len(learned)} experiences can be trained on; is the server's store_content switched off?"
        )
    if plan.rehearsal is None:
        raise ValueError("finetune.rehearsal: is not set, and no pre-trained version says what it was trained on")
    rehearsal = load_data_folder(Path(plan.rehearsal), spec, "train", tokenizer)
    trained = finetune(
        load_policy(parent, spec),
        experiences,
        rehearsal,
        settings=FinetuneSettings(
            replays_per_experience=plan.replays, max_duration_s=plan.max_duration_s, seed=plan.seed
        ),
        on_progress=lambda progress: _report(run_dir, progress),
    )
    candidate = run_dir / CANDIDATE
    shutil.rmtree(candidate, ignore_errors=True)
    candidate.mkdir()
    if tokenizer is not None:
        shutil.copyfile(parent / TOKENIZER, candidate / TOKENIZER)
    golden = load_file(parent / TRUNK_GOLDEN)
    inputs = {name: array for name, array in golden.items() if name not in (EMBEDDING, BASE_LOGITS)}
    manifest = Manifest(
        spec=spec,
        kind="finetuned",
        created_at_s=task.created_at_s,
        files={},
        parent=before.version,
        floor=task.maker.floor,
        reason=f"Fine-tuned: {task.reason}",
        data={**task.data, "trained_on": len(experiences)},
        metrics={"steps": trained.steps, "duration_s": trained.duration_s},
    )
    manifest = export_version(trained.model, candidate, manifest, inputs, parent_trunk=parent / TRUNK)
    features = _build_head(run_dir, candidate, manifest, used, store, runtime, task)
    write_json(
        run_dir / RESULT,
        {
            "steps": trained.steps,
            "duration_s": trained.duration_s,
            "trained_on": len(experiences),
            "features": features,
        },
    )


def training_data(
    learned: Sequence[Experience],
    store: ExperienceStore,
    spec: ModelSpec,
    tokenizer: Tokenizer | None,
    task: JobDescription,
) -> tuple[Experiences, list[Experience]]:
    """Decode what can be trained on: where there is content and a reward for the answer. Equal items are kept once."""
    pools = {name: _Pool() for name in spec.modalities}
    index: list[list[int]] = []
    used: list[Experience] = []
    for start in range(0, len(learned), _CHUNK):
        chunk = learned[start : start + _CHUNK]
        contents = store.contents([experience.served.prediction_id for experience in chunk])
        for experience in chunk:
            if not spec.has_action(experience.served.action) or experience.reward is None:
                continue
            content = contents[experience.served.prediction_id]
            row = decode_contents(spec, tokenizer, content, task.limits)
            if row is not None:
                index.append([pools[n].place(content[n], row[n]) if n in row else _MISSING for n in spec.modalities])
                used.append(experience)
    corrections = [None if e.judgement is None else e.judgement.correction for e in used]
    return Experiences(
        pools={
            name: np.stack(pool.items) if pool.items else np.zeros((0, *modality.shape), input_dtype(modality))
            for (name, modality), pool in zip(spec.modalities.items(), pools.values(), strict=True)
        },
        index=np.array(index, np.int64).reshape(len(used), len(spec.modalities)),
        action=np.array([spec.action_index(e.served.action) for e in used], np.int64),
        reward=np.array([e.reward for e in used], np.float32),
        correction=np.array(
            [spec.action_index(c) if c is not None and spec.has_action(c) else _MISSING for c in corrections], np.int64
        ),
        weight=np.array([1.0 if e.judgement is None else e.judgement.weight for e in used], np.float32),
    ), used


class _Pool:
    """Distinct items of one modality, each decoded item kept once."""

    def __init__(self) -> None:
        self.items: list[npt.NDArray[Any]] = []
        self._places: dict[bytes, int] = {}

    def place(self, content: Content, decoded: npt.NDArray[Any]) -> int:
        key = _key(content)
        if key not in self._places:
            self._places[key] = len(self.items)
            self.items.append(decoded)
        return self._places[key]


def _key(content: Content) -> bytes:
    match content:
        case EncodedContent(_, data):
            return data
        case TextContent(text):
            return text.encode()
        case TensorContent(array):
            return array.tobytes()


def _build_head(
    run_dir: Path,
    candidate: Path,
    manifest: Manifest,
    used: Sequence[Experience],
    store: ExperienceStore,
    runtime: ModelRuntime,
    task: JobDescription,
) -> int:
    """Give the candidate a head built on the experiences as its trunk sees them; returns how many it could see."""
    version = OpenVersion(candidate, runtime, task.limits)
    space = task.maker.space(manifest)
    state = empty_state(space)
    actions = {action: i for i, action in enumerate(manifest.spec.actions)}
    found: dict[str, Features] = {}
    for start in range(0, len(used), _CHUNK):
        chunk = used[start : start + _CHUNK]
        ids = [experience.served.prediction_id for experience in chunk]
        contents: Mapping[str, Mapping[str, Content]] = store.contents(ids)
        made = zip(chunk, version.embed([contents[id_] for id_ in ids]), strict=True)
        judged = [(row, e, e.judgement) for e, row in made if row is not None and e.judgement is not None]
        found |= {e.served.prediction_id: row for row, e, _ in judged}
        state = state.add(evidence_of(space, [(row, judgement) for row, _, judgement in judged], actions))
    task.maker.write(candidate, state)
    write_card(candidate, seal(candidate, manifest))
    write_features(run_dir / FEATURES, found)
    (run_dir / STATE).write_bytes(state.to_bytes())
    return len(found)


def _report(run_dir: Path, progress: FinetuneProgress) -> None:
    with (run_dir / PROGRESS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(progress)) + "\n")


def main(arguments: Sequence[str]) -> int:
    """A composition root: the run folder says what to do, the standard input where the store is."""
    from plaudit.adapters.onnx_runtime import OnnxRuntime
    from plaudit.adapters.sql_store import SqlStore

    run_dir = Path(arguments[0])
    os.nice(_NICENESS)
    try:
        task = read_description(run_dir)
        store = SqlStore(sys.stdin.read())
        try:
            run_job(run_dir, store, OnnxRuntime("cpu", task.plan.threads))
        finally:
            store.close()
    except Exception as error:
        traceback.print_exc()
        write_json(run_dir / ERROR, {"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Pre-training from a labelled data folder to a published version. Knows neither terminals nor where versions are kept.

Notation:
    n: rows, m: number of modalities
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from plaudit.core.errors import ConfigError
from plaudit.core.limits import MAX_ACTIONS
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.rollout import Change, promote
from plaudit.core.settings import EncoderSettings
from plaudit.learner.features.head_builder import write_card
from plaudit_models.bundle import TOKENIZER, Manifest
from plaudit_models.data.config import DEFAULT_DATA, DataConfig
from plaudit_models.data.labelled import LabelledData
from plaudit_models.data.loader import StreamedData, tokenizer_for
from plaudit_models.data.rows import read_rows
from plaudit_models.preprocess import action_texts, assemble
from plaudit_models.spec import ModelSpec
from plaudit_models.training.config import PretrainConfig
from plaudit_models.training.encoders.config import UnusableEncoder
from plaudit_models.training.encoders.folder import LoadedEncoder, read_encoder
from plaudit_models.training.export import export_version
from plaudit_models.training.networks.fusion import FusionConfig
from plaudit_models.training.pretrain import (
    Accuracy,
    Pretrained,
    PretrainProgress,
    evaluate_with_each,
    pretrain,
)
from plaudit_models.training.schedule import use_threads

_GOLDEN_ROWS: Final = 16
_ACTOR: Final = "pretrain"
_NONE: Final[Mapping[str, EncoderSettings]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Published:
    """Result of pre-training.

    Attributes:
        manifest: manifest of the version, with its number.
        accuracy: accuracy on the test split, or on the validation split where there is no test split.
        without: the same with each modality withheld in turn.
        live: whether the version serves: it does where none served before.
    """

    manifest: Manifest
    training: Pretrained
    accuracy: Accuracy
    without: dict[str, Accuracy]
    live: bool


def pretrain_and_publish(
    folder: Path,
    spec: ModelSpec,
    registry: ModelRegistry,
    *,
    now_s: float,
    floor: float,
    config: PretrainConfig,
    threads: int,
    encoders: Mapping[str, EncoderSettings] = _NONE,
    data: DataConfig = DEFAULT_DATA,
    on_progress: Callable[[PretrainProgress], None] = lambda progress: None,
) -> Published:
    """Train on ``folder``, export, check the graphs against torch, publish; promote if nothing is live.

    Args:
        encoders: pretrained encoders to start from, by the name of their modality.

    Raises:
        UnusableEncoder: the folder of one holds none, or several texts would need tokenizers of their own.
        ConfigError: the model has more actions than can be learned about.
        InvalidData: the folder is wrong; says where.
        FloatingPointError: training diverged.
        ExportMismatch: the graphs do not do what torch does.
    """
    if len(spec.actions) > MAX_ACTIONS:
        raise ConfigError(
            f"model.actions: {len(spec.actions)} given, and a model has at most {MAX_ACTIONS}; leave out those that "
            f"are never right, or let requests list them as dynamic actions"
        )
    use_threads(threads)
    loaded = {
        name: read_encoder(each.folder, spec.modalities[name], name=name, tuned=each.tuned)
        for name, each in encoders.items()
    }
    rows = read_rows(folder, spec, data)
    rows.check()
    tokenizer = _tokenizer_of(spec, loaded) or tokenizer_for(rows)
    train = StreamedData(rows, "train", tokenizer)
    validation = StreamedData(rows, "val", tokenizer)
    trained = pretrain(
        train,
        validation,
        fusion=FusionConfig(
            vocabulary_size=tokenizer.get_vocab_size() if tokenizer else 1,
            encoders={name: each.config for name, each in loaded.items()},
        ),
        config=config,
        action_texts=action_texts(spec, tokenizer) if spec.scores_text and tokenizer is not None else None,
        encoder_weights={name: each.weights for name, each in loaded.items()},
        on_progress=on_progress,
    )
    split = "test" if "test" in rows.split else "val"
    measured_on = StreamedData(rows, "test", tokenizer) if split == "test" else validation
    accuracy, without, by_name = evaluate_with_each(trained.model, measured_on)
    manifest = Manifest(
        spec=spec,
        kind="pretrained",
        created_at_s=now_s,
        files={},
        floor=floor,
        reason=f"pre-trained on {len(train)} labelled rows of {folder.name}",
        data={
            "folder": str(folder.resolve()),
            "rows": {"train": len(train), "val": len(validation)},
            **({"splits": rows.made_splits} if rows.made_splits else {}),
        },
        metrics={
            "split": split,
            "accuracy": asdict(accuracy),
            "without": {name: asdict(each) for name, each in without.items()},
            **({"by_name": asdict(by_name)} if by_name is not None else {}),
            "validation": asdict(trained.validation),
            "steps": trained.steps,
            "duration_s": trained.duration_s,
            "stopped_early": trained.stopped_early,
            "cut_short": trained.cut_short,
        },
    )
    with tempfile.TemporaryDirectory(prefix="plaudit-pretrain-") as scratch:
        if tokenizer is not None:
            tokenizer.save(str(Path(scratch) / TOKENIZER))
        golden = golden_inputs(validation.sample(golden_rows(len(validation))))
        sealed = export_version(trained.model, Path(scratch), manifest, golden)
        write_card(Path(scratch), sealed)
        published = registry.publish(Path(scratch))
    rollout = registry.rollout()
    if rollout.live is None:
        registry.set_rollout(promote(rollout, published.version, Change(_ACTOR, now_s, "the first version")))
    return Published(published, trained, accuracy, without, live=rollout.live is None)


def golden_rows(n: int) -> npt.NDArray[np.int64]:
    """Numbers of up to 16 rows spread over ``n``."""
    return np.unique(np.linspace(0, n - 1, _GOLDEN_ROWS).round().astype(np.int64))


def _tokenizer_of(spec: ModelSpec, loaded: Mapping[str, LoadedEncoder]) -> Tokenizer | None:
    """Tokenizer of the pretrained text encoders; None where there are none. All texts of a model share one."""
    made = {name: each.tokenizer for name, each in loaded.items() if each.tokenizer is not None}
    if not made:
        return None
    first, *others = made
    for name in others:
        if made[name].to_str() != made[first].to_str():
            raise UnusableEncoder(
                f"model.modalities.{name}.encoder: its tokenizer is not that of {first!r}, and a model has one "
                "tokenizer; name the same folder for both"
            )
    return made[first]


def golden_inputs(data: LabelledData) -> dict[str, npt.NDArray[Any]]:
    """Up to 16 rows spread over ``data`` as trunk inputs, ``present`` included."""
    contents = [
        {
            name: data.pools[name][item]
            for name, item in zip(data.spec.modalities, data.index[row], strict=True)
            if item >= 0
        }
        for row in golden_rows(len(data))
    ]
    return assemble(data.spec, contents)

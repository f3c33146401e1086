"""Supervised training of a fusion policy on labelled data: minimise L(θ) = Σ −log P(yᵢ | xᵢ; θ).

Knows nothing about files, terminals or versions: data comes in decoded, progress goes out through a callback.

Data with tower labels (a class that can be read off one modality alone) adds, per modality, −log P(class | item) from a
linear layer on that modality's tokens; the layer is thrown away afterwards.

A policy that scores text learns to in the same steps, from −log P(yᵢ | xᵢ; texts) with a text per action: the actions'
names in one step, and in the next what users said whose label the action is, a row drawn for each. Names alone are too
few to learn from what words mean to each other.

Notation:
    n: rows, b: rows of a batch, m: number of modalities, a: number of actions
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from plaudit_models.dataset import MISSING, LabelledData
from plaudit_models.training.config import PretrainConfig
from plaudit_models.training.data.augment import augment
from plaudit_models.training.data.rows import drop_modalities, encode_rows, prepare_pools
from plaudit_models.training.losses import action_nll
from plaudit_models.training.networks.fusion import FusionConfig, FusionPolicy, PretrainedEncoder
from plaudit_models.training.schedule import IntervalMean, blocks, descend, fraction_done, one_cycle
from plaudit_models.training.texts import ActionTexts

_EVALUATION_ROWS = 1024
_NO_WEIGHTS: Final[Mapping[str, Mapping[str, Tensor]]] = MappingProxyType({})
_TUNED_SHARE = 0.01
"""Learning rate of pretrained weights, as a share of that of new ones."""


@dataclass(frozen=True, slots=True)
class PretrainProgress:
    """Progress of training: after ``step`` of ``steps``, ``fraction`` of the way, ``loss`` since the last report in
    nats per row, and ``validation_accuracy`` when it was just measured."""

    step: int
    steps: int
    fraction: float
    elapsed_s: float
    loss: float
    validation_accuracy: float | None = None

    @property
    def left_s(self) -> float:
        """Remaining time, if training goes on as fast as so far."""
        return self.elapsed_s * (1.0 - self.fraction) / self.fraction


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of rows whose best-scored action is the right one.

    Attributes:
        overall: over all rows.
        by_group: per group name of the data.
    """

    overall: float
    by_group: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Result of pre-training: the policy in eval mode with its best weights, and the course of training.

    Attributes:
        steps: gradient steps taken.
        stopped_early: validations brought no improvement any more.
        cut_short: the time limit ended it before its steps were done.
    """

    model: FusionPolicy
    validation: Accuracy
    steps: int
    duration_s: float
    stopped_early: bool
    cut_short: bool


def pretrain(
    train: LabelledData,
    validation: LabelledData,
    *,
    fusion: FusionConfig,
    config: PretrainConfig,
    action_texts: npt.NDArray[np.int64] | None = None,
    encoder_weights: Mapping[str, Mapping[str, Tensor]] = _NO_WEIGHTS,
    on_progress: Callable[[PretrainProgress], None] = lambda progress: None,
) -> Pretrained:
    """Train a fusion policy from nothing but the weights of its pretrained encoders.

    Args:
        train: what to learn from.
        validation: what early stopping and the choice of the best weights look at.
        action_texts: token ids of the actions' names, ``[a, t]``; needed where the spec scores text.
        encoder_weights: state dict of every pretrained encoder that ``fusion`` names.
        on_progress: called after about every hundredth of the way and after every validation.

    Raises:
        ValueError: ``action_texts`` are needed and missing.
        FloatingPointError: the loss is no longer finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = FusionPolicy(train.spec, fusion)
        towers = _towers(model, train.tower_classes)
    for name, weights in encoder_weights.items():
        encoder = model.encoder(name)
        assert isinstance(encoder, PretrainedEncoder)
        encoder.pretrained.network.load_state_dict(dict(weights))
    texts = None
    if model.text_scorer is not None:
        if action_texts is None:
            raise ValueError(f"action_texts: none given, but {train.spec.name!r} scores text")
        model.text_scorer.action_texts.copy_(torch.from_numpy(action_texts))
        texts = ActionTexts(model, train)
    generator = Generator().manual_seed(config.seed)
    pools = prepare_pools(model, train.pools)
    labels = {name: torch.from_numpy(train.tower_labels[name]) for name in towers}
    index, action = torch.from_numpy(train.index), torch.from_numpy(train.action)
    groups = _parameter_groups(model, towers)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    validation_pools = prepare_pools(model, validation.pools)

    def change(name: str, content: Tensor) -> Tensor:
        kept = model.encoder(name).keeps_content
        return augment(train.spec.modalities[name], content, generator) if kept else content

    start_s = time.monotonic()
    best = Accuracy(-1.0, {})
    best_state = _copy_of(model)
    step, since_best, validated, reported, losses = 0, 0, 0, 0.0, IntervalMean()
    stopped_early = False
    waiting: list[Tensor] = []
    steps, limit_s = config.steps(len(train)), config.max_duration_s
    while (fraction := fraction_done(step, steps, time.monotonic() - start_s, limit_s)) < 1.0 and not stopped_early:
        if not waiting:
            waiting = blocks(len(train), config.batch, generator)
        rows = waiting.pop()
        model.train()
        tokens = encode_rows(model, pools, index[rows], change)
        present = (index[rows] >= 0).float()
        embedding, logits = model.fuse(tokens, drop_modalities(present, config.modality_dropout, generator))
        action_loss = action_nll(logits, action[rows]).mean()
        tower_loss = sum(
            (_tower_loss(towers[name], tokens[name], labels[name][rows]) for name in towers), torch.zeros(())
        )
        loss = action_loss + config.tower_weight * tower_loss
        if texts is not None:
            loss = loss + config.text_weight * texts.loss(embedding, action[rows], step, generator)
        rate = config.learning_rate * one_cycle(fraction)
        descend(loss, optimizer, learning_rate=rate, max_gradient_norm=config.max_gradient_norm)
        step += 1
        losses.add(float(action_loss.detach()))
        if not math.isfinite(losses.last):
            raise FloatingPointError(
                f"the loss is {losses.last} at step {step}; a lower learning_rate than {config.learning_rate} may help"
            )
        elapsed_s = time.monotonic() - start_s
        fraction = fraction_done(step, steps, elapsed_s, limit_s)
        if fraction * config.validations >= validated + 1 or fraction >= 1.0:
            validated = int(fraction * config.validations)
            measured = evaluate(model, validation, prepared=validation_pools)
            since_best += 1
            if measured.overall > best.overall:
                best, best_state, since_best = measured, _copy_of(model), 0
            stopped_early = since_best >= config.patience and fraction < 1.0
            on_progress(PretrainProgress(step, steps, min(fraction, 1.0), elapsed_s, losses.take(), measured.overall))
            reported = fraction
        elif fraction >= reported + 0.01:
            on_progress(PretrainProgress(step, steps, fraction, elapsed_s, losses.take()))
            reported = fraction
    model.load_state_dict(best_state, strict=False)
    model.settle()
    cut_short = step < steps and not stopped_early
    return Pretrained(model.eval(), best, step, time.monotonic() - start_s, stopped_early, cut_short)


def evaluate(
    model: FusionPolicy,
    data: LabelledData,
    *,
    without: Collection[str] = (),
    by_name: bool = False,
    prepared: Mapping[str, Tensor] | None = None,
) -> Accuracy:
    """Accuracy of the greedy policy on ``data``, if wanted with modalities withheld from every row.

    Args:
        prepared: the data's pools as :func:`prepare_pools` makes them, where they are at hand.
        by_name: actions are scored as dynamic actions are, by their names.

    Raises:
        ValueError: ``without`` is not a modality of the model, or it scores no text.
    """
    index = torch.from_numpy(data.index).clone()
    for name in without:
        if name not in data.spec.modalities:
            raise ValueError(f"without {name!r}: the modalities of {data.spec.name!r} are {list(data.spec.modalities)}")
        index[:, list(data.spec.modalities).index(name)] = MISSING
    model.eval()
    pools = prepare_pools(model, data.pools) if prepared is None else prepared
    right = []
    with torch.no_grad():
        names = model.action_vectors() if by_name else None
        for rows in torch.arange(len(data)).split(_EVALUATION_ROWS):
            embedding, logits = model.fuse(encode_rows(model, pools, index[rows]), (index[rows] >= 0).float())
            if names is not None:
                logits = embedding @ names.T
            right.append(logits.argmax(dim=1).numpy() == data.action[rows.numpy()])
    hits = np.concatenate(right)
    groups = np.array(data.group)
    return Accuracy(
        overall=float(hits.mean()),
        by_group={str(name): float(hits[groups == name].mean()) for name in np.unique(groups)},
    )


def without_each(
    model: FusionPolicy, data: LabelledData, *, prepared: Mapping[str, Tensor] | None = None
) -> dict[str, Accuracy]:
    """Accuracy with each modality withheld in turn, by the modality's name."""
    return {name: evaluate(model, data, without=[name], prepared=prepared) for name in data.spec.modalities}


def _towers(model: FusionPolicy, classes: Mapping[str, tuple[str, ...]]) -> nn.ModuleDict:
    size = model.config.tokens_per_modality * model.config.width
    return nn.ModuleDict({name: nn.Linear(size, len(names)) for name, names in classes.items() if names})


def _tower_loss(tower: nn.Module, tokens: Tensor, label: Tensor) -> Tensor:
    """−log P(class | item), the mean over the rows that have a label (0 if none has)."""
    loss = functional.cross_entropy(tower(tokens.flatten(1)), label, ignore_index=-1, reduction="sum")
    return loss / (label >= 0).sum().clamp_min(1)


def _parameter_groups(model: FusionPolicy, towers: nn.ModuleDict) -> list[dict[str, Any]]:
    """Parameters that are trained; those that were before, at a share of the learning rate."""
    tuned = [
        weight
        for encoder in model.encoders.values()
        if isinstance(encoder, PretrainedEncoder)
        for weight in encoder.pretrained.parameters()
        if weight.requires_grad
    ]
    of_encoders = {id(weight) for weight in tuned}
    new = [w for w in model.parameters() if w.requires_grad and id(w) not in of_encoders]
    groups: list[dict[str, Any]] = [{"params": [*new, *towers.parameters()]}]
    return groups + ([{"params": tuned, "share": _TUNED_SHARE}] if tuned else [])


def _copy_of(model: nn.Module) -> dict[str, Tensor]:
    """State of what is trained."""
    still = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in still}

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from plaudit_models.data.labelled import Batches, LabelledData, LabelledRows
from plaudit_models.data.loader import block_order
from plaudit_models.training.config import PretrainConfig
from plaudit_models.training.data.augment import augment
from plaudit_models.training.data.rows import drop_modalities, encode_rows, preparer
from plaudit_models.training.losses import action_nll, ranking_nll, shares_nll
from plaudit_models.training.networks.fusion import FusionConfig, FusionPolicy, PretrainedEncoder
from plaudit_models.training.schedule import IntervalMean, descend, fraction_done, one_cycle
from plaudit_models.training.texts import ActionTexts

_EVALUATION_ROWS = 1024
_MAX_GROUPS = 100
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
        by_group: per group name of the data, where there are no more than 100.
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
    train: LabelledRows,
    validation: LabelledRows,
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
        texts = ActionTexts(model, train.decoded(train.spec.dynamic_action_modality[0]))
    generator = Generator().manual_seed(config.seed)
    batches = train.prepared_by(preparer(model))(block_order(len(train), config.batch, config.seed))
    validated_on = validation.prepared_by(preparer(model))
    groups = _parameter_groups(model, towers)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)

    def change(name: str, content: Tensor) -> Tensor:
        kept = model.encoder(name).keeps_content
        return augment(train.spec.modalities[name], content, generator) if kept else content

    start_s = time.monotonic()
    best = Accuracy(-1.0, {})
    best_state = _copy_of(model)
    step, since_best, validated, reported, losses = 0, 0, 0, 0.0, IntervalMean()
    stopped_early = False
    steps, limit_s = config.steps(len(train)), config.max_duration_s
    while (fraction := fraction_done(step, steps, time.monotonic() - start_s, limit_s)) < 1.0 and not stopped_early:
        batch = next(batches)
        index, action = torch.from_numpy(batch.index), torch.from_numpy(batch.action)
        model.train()
        tokens = encode_rows(model, _tensors(batch), index, change)
        present = (index >= 0).float()
        embedding, logits = model.fuse(tokens, drop_modalities(present, config.modality_dropout, generator))
        action_loss = _target_loss(logits, batch)
        tower_loss = sum(
            (_tower_loss(towers[name], tokens[name], torch.from_numpy(batch.tower_labels[name])) for name in towers),
            torch.zeros(()),
        )
        loss = action_loss + config.tower_weight * tower_loss
        if texts is not None:
            loss = loss + config.text_weight * texts.loss(embedding, action, step, generator)
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
            measured = _measured(model, validated_on, len(validation))
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


def evaluate(model: FusionPolicy, data: LabelledRows, *, without: str | None = None, by_name: bool = False) -> Accuracy:
    """Accuracy of the greedy policy on ``data``, if wanted with one modality withheld from every row.

    Args:
        by_name: actions are scored as dynamic actions are, by their names.

    Raises:
        ValueError: ``without`` is not a modality of the model, or it scores no text.
    """
    return _measured(model, data.prepared_by(preparer(model)), len(data), without=without, by_name=by_name)


def without_each(model: FusionPolicy, data: LabelledRows) -> dict[str, Accuracy]:
    """Accuracy with each modality withheld in turn, by the modality's name."""
    return evaluate_with_each(model, data)[1]


def evaluate_with_each(
    model: FusionPolicy, data: LabelledRows
) -> tuple[Accuracy, dict[str, Accuracy], Accuracy | None]:
    """Accuracy as :func:`evaluate` gives it; with each modality withheld in turn; and by the actions' names, None where
    the model scores no text. Every item is prepared once.
    """
    batches, n = data.prepared_by(preparer(model)), len(data)
    return (
        _measured(model, batches, n),
        {name: _measured(model, batches, n, without=name) for name in data.spec.modalities},
        _measured(model, batches, n, by_name=True) if model.spec.scores_text else None,
    )


def _measured(
    model: FusionPolicy, batches: Batches, n: int, *, without: str | None = None, by_name: bool = False
) -> Accuracy:
    names = list(model.spec.modalities)
    if without is not None and without not in names:
        raise ValueError(f"without {without!r}: the modalities of {model.spec.name!r} are {names}")
    model.eval()
    right: list[npt.NDArray[np.bool_]] = []
    groups: list[str] = []
    with torch.no_grad():
        vectors = model.action_vectors() if by_name else None
        for batch in batches(np.split(np.arange(n), range(_EVALUATION_ROWS, n, _EVALUATION_ROWS))):
            index = torch.from_numpy(batch.index).clone()
            if without is not None:
                index[:, names.index(without)] = -1
            embedding, logits = model.fuse(encode_rows(model, _tensors(batch), index), (index >= 0).float())
            if vectors is not None:
                logits = embedding @ vectors.T
            right.append(batch.is_right(logits.argmax(dim=1).numpy()))
            groups += batch.group
    hits, of = np.concatenate(right), np.array(groups)
    reported = sorted(set(groups)) if len(set(groups)) <= _MAX_GROUPS else []
    return Accuracy(overall=float(hits.mean()), by_group={name: float(hits[of == name].mean()) for name in reported})


def _tensors(batch: LabelledData) -> dict[str, Tensor]:
    return {name: torch.from_numpy(pool) for name, pool in batch.pools.items()}


def _target_loss(logits: Tensor, batch: LabelledData) -> Tensor:
    """Loss of the batch's targets, the mean over its rows by their weights."""
    if batch.ranking is not None:
        losses = ranking_nll(logits, torch.from_numpy(batch.ranking))
    elif batch.shares is not None:
        losses = shares_nll(logits, torch.from_numpy(batch.shares))
    else:
        losses = action_nll(logits, torch.from_numpy(batch.action))
    if batch.weight is None:
        return losses.mean()
    weight = torch.from_numpy(batch.weight)
    return (losses * weight).sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)


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

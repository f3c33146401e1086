"""Hyperparameters of pre-training, fine-tuning and the reward model. Imports no torch: who starts a job needs them
too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from plaudit_models.spec import ModalityKind


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Hyperparameters of pre-training.

    Attributes:
        max_steps: gradient steps at most; None: as many as ``max_epochs`` take. The learning-rate schedule spans them.
        max_epochs: passes over the data at most.
        max_duration_s: wall-clock limit of the training loop; None is none. Where the steps would take longer, the
            schedule is shortened, so only a run that it does not cut short is repeatable from its seed.
        batch: consecutive rows per step. Rows that share items cost less when they stand together in the data.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of AdamW.
        tower_weight: weight of a tower's loss against the action's.
        text_weight: weight of the loss of actions that are scored by a text.
        modality_dropout: share of modalities hidden during training.
        max_gradient_norm: gradients are clipped to it.
        validations: accuracy measurements on the validation data, evenly over the run.
        patience: validations in a row without improvement after which training stops.
        seed: decides initial weights, order and augmentation.
    """

    max_steps: int | None = None
    max_epochs: int = 50
    max_duration_s: float | None = None
    batch: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    tower_weight: float = 0.3
    text_weight: float = 0.5
    modality_dropout: float = 0.03
    max_gradient_norm: float = 1.0
    validations: int = 10
    patience: int = 5
    seed: int = 0

    def steps(self, rows: int) -> int:
        """Gradient steps on that many rows."""
        return self.max_epochs * math.ceil(rows / self.batch) if self.max_steps is None else self.max_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Low-rank updates of weight matrices (:mod:`.networks.lora`).

    Attributes:
        rank: r ≥ 1 of the updates.
        alpha: their scale, α/r.
    """

    rank: int = 8
    alpha: float = 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """Sampling of actions for the objective :class:`.objectives.Sampled`.

    Attributes:
        samples: g ≥ 2, actions drawn for each content.
        clip: ε in (0, 1) of the clipped ratio.
        floor: share of the draws that are uniform over the allowed actions, in (0, 1). They harm no user, and without
            them an answer that the policy is sure not to give is never tried.
        sample_reuse: μ ≥ 1, gradient steps on each draw; a draw is never older than μ − 1 steps.

    Raises:
        ValueError: a value is out of its range.
    """

    samples: int = 16
    clip: float = 0.2
    floor: float = 0.1
    sample_reuse: int = 4

    def __post_init__(self) -> None:
        if self.samples < 2 or not 0 < self.clip < 1 or not 0 < self.floor < 1 or self.sample_reuse < 1:
            raise ValueError(f"{self}: needs samples ≥ 2, clip and floor in (0, 1), and sample_reuse ≥ 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """Hyperparameters of fine-tuning.

    Attributes:
        replays_per_experience: replays of each experience; the learning-rate schedule spans these steps.
        max_steps: gradient steps at most; None is no limit.
        max_duration_s: wall-clock limit of the training loop; None is none. The schedule spans whichever limit ends
            first, so only a run that it does not cut short is repeatable from its seed.
        replay_rows: experiences per step.
        rehearsal_rows: labelled rows per step.
        rehearsal_share: ρ in [0, 1], the anchor's share of the loss.
        kl_weight: β ≥ 0 of the KL divergence from the parent.
        target: β of the closed-form target that a reward model makes, if that is the user loss.
        sampling: the user loss is what a reward model says of sampled actions; None: the likelihood of the feedback.
        lora: low-rank updates of the weight matrices are trained; None: all weights are.
        text_weight: weight of the rehearsal of a policy that scores text, against that of its actions.
        noise: δ, share of thumbs believed to be wrong.
        trained_encoders: kinds of modality whose encoders are trained; the fusion layers and the head always are.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of AdamW.
        max_gradient_norm: gradients are clipped to it.
        checkpoint_steps: steps between two checkpoints, at least.
        seed: decides the order of experiences and labelled rows, where updates start, and what is sampled.
    """

    replays_per_experience: float = 4.0
    max_steps: int | None = None
    max_duration_s: float | None = 30.0
    replay_rows: int = 64
    rehearsal_rows: int = 128
    rehearsal_share: float = 0.7
    kl_weight: float = 0.0
    target: float | None = None
    sampling: SamplingConfig | None = None
    lora: LoraConfig | None = None
    text_weight: float = 0.5
    noise: float = 0.05
    trained_encoders: tuple[ModalityKind, ...] = ("text",)
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    max_gradient_norm: float = 1.0
    checkpoint_steps: int = 200
    seed: int = 0

    @property
    def objective(self) -> Literal["likelihood", "target", "sampled"]:
        """User loss (:mod:`.objectives`)."""
        if self.sampling is not None:
            return "sampled"
        return "likelihood" if self.target is None else "target"


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Hyperparameters of the reward model; fields that are not listed as in :class:`FinetuneConfig`.

    Attributes:
        seed: decides the order of experiences, and which are held out.
    """

    replays_per_experience: float = 4.0
    max_duration_s: float | None = 30.0
    replay_rows: int = 64
    noise: float = 0.05
    trained_encoders: tuple[ModalityKind, ...] = ("text",)
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    max_gradient_norm: float = 1.0
    seed: int = 0

"""Answers sampled where there are too many to enumerate: `finetune.objective = "sampled"` and `target`.

A sight and a sound make a situation, and each situation has four answers of its own. For half of the sounds labels
say which one is right; for the others they named any of the four, and users like one, of which only thumbs can tell.
Both objectives ask the same reward model, fitted on thumbs about what the pre-trained policy answered. What is reported
is the probability of the liked answer on content without feedback.

The cost of a step is the objective's own, from logits to their gradient, in processor time; what the policy itself
takes to make logits is the same for both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from benchmarks.measure import Curve, Measure
from plaudit.compose.learner import head_builder, training_plan
from plaudit.compose.settings import settings_from
from plaudit.core.settings import Settings
from plaudit_models.data.labelled import LabelledData
from plaudit_models.spec import ModelSpec, TensorModality
from plaudit_models.training.config import PretrainConfig, RewardConfig, SamplingConfig
from plaudit_models.training.data.experiences import Experiences
from plaudit_models.training.data.feedback_targets import FeedbackTargets, build_feedback_targets
from plaudit_models.training.finetune import Finetuned, finetune
from plaudit_models.training.networks.fusion import FusionConfig, FusionPolicy
from plaudit_models.training.objectives import Objective, Sampled, TargetPolicy
from plaudit_models.training.pretrain import pretrain
from plaudit_models.training.reward import RewardModel, fit_reward_model, rewards_on

SENSES: Final = 12
"""Number of features of a sight, and of a sound."""
NOISE: Final = 0.3
ANSWERS: Final = 4
"""Number of answers of each situation."""
WRONG: Final = 0.05
"""Share of thumbs that say the opposite."""
BATCH: Final = 64
EMBEDDING: Final = 64
CONFIG: Final = FusionConfig(width=64, layers=1, attention_heads=4, tokens_per_modality=1)
TRAINED: Final = ("tensor",)

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a run: kinds of sight and as many of sound, labelled rows and steps on them, thumbs, how often each is
    looked at, contents to judge on, and numbers of actions at which a step is timed.
    """

    kinds: int
    labelled: int
    steps: int
    thumbs: int
    replays: float
    judged: int
    timed: tuple[int, ...]

    @property
    def actions(self) -> int:
        return self.kinds**2 * ANSWERS


FULL: Final = Sizes(16, 16_384, 1_500, 8_000, 8.0, 2_000, (256, 1_024, 4_096, 16_384))
QUICK: Final = Sizes(4, 512, 60, 256, 2.0, 100, (64, 256))


@dataclass(frozen=True, slots=True, eq=False)
class Situations:
    """Attributes:
    sight: ``[n, SENSES]``.
    sound: ``[n, SENSES]``.
    first: the first of the four answers of each, ``[n]``.
    liked: the answer that users like, ``[n]``.
    labelled_mask: True where labels tell it, ``[n]``.
    """

    sight: Floats
    sound: Floats
    first: Int64
    liked: Int64
    labelled_mask: npt.NDArray[np.bool_]

    @property
    def pools(self) -> dict[str, Floats]:
        return {"sight": self.sight, "sound": self.sound}

    @property
    def index(self) -> Int64:
        return np.repeat(np.arange(len(self.first))[:, None], 2, axis=1)


def run(shuffles: int, quick: bool) -> list[Measure]:
    """Measures over shuffles, each with a task, a policy and its thumbs of its own."""
    torch.set_num_threads(1)
    sizes = QUICK if quick else FULL
    found = [compare(sizes, seed) for seed in range(1 if quick else min(shuffles, 3))]
    gain = {name: [each[name] - each["parent"] for each in found] for name in ("target", "sampled")}
    kept = [each["sampled, labelled"] - each["parent, labelled"] for each in found]
    ratio = float(np.mean(gain["sampled"]) / np.mean(gain["target"]))
    parent = np.mean([each["parent"] for each in found])
    n = f"{sizes.actions} actions, {sizes.thumbs} thumbs, {len(found)} tasks"
    return [
        Measure("liked, before", float(parent), note=n),
        Measure("target: gained", float(np.mean(gain["target"])), note=_spread(gain["target"])),
        Measure("sampled: gained", float(np.mean(gain["sampled"])), 0.3, "at_least", _spread(gain["sampled"])),
        Measure("sampled: gain over target's", ratio, 0.9, "at_least"),
        Measure("sampled: labelled answers lost", -float(np.mean(kept)), 0.01, "at_most", _spread(kept)),
        *costs(sizes.timed),
    ]


def compare(sizes: Sizes, seed: int) -> dict[str, float]:
    """Probabilities of liked answers, where labels do not tell them and where they do: before, and after each job."""
    rng = np.random.default_rng(seed)
    prototypes = rng.normal(size=(2, sizes.kinds, SENSES)).astype(np.float32)
    spec = _spec(sizes.actions)
    parent = pretrained(spec, prototypes, sizes, rng, seed)
    experiences, said = thumbs(parent, prototypes, sizes, rng)
    config = RewardConfig(
        replays_per_experience=sizes.replays, max_duration_s=None, trained_encoders=TRAINED, seed=seed
    )
    model, _ = fit_reward_model(parent, experiences, said, config=config)
    sure = _draw(prototypes, sizes.labelled, rng)
    rows = np.flatnonzero(sure.labelled_mask)
    rehearsal = replace(_labelled(spec, sure, sure.liked), index=sure.index[rows], action=sure.liked[rows])
    fresh = _draw(prototypes, sizes.judged, rng)
    policies = {"parent": parent}
    policies |= {
        name: job(parent, experiences, rehearsal, model, name, sizes, seed).model for name in ("target", "sampled")
    }
    found: dict[str, float] = {}
    for name, policy in policies.items():
        liked = _probabilities(policy, fresh)[np.arange(sizes.judged), fresh.liked]
        found[name] = float(liked[~fresh.labelled_mask].mean())
        found[f"{name}, labelled"] = float(liked[fresh.labelled_mask].mean())
    return found


def job(
    parent: FusionPolicy,
    experiences: Experiences,
    rehearsal: LabelledData,
    model: RewardModel,
    objective: str,
    sizes: Sizes,
    seed: int,
) -> Finetuned:
    """Fine-tuning job at its default settings, but for encoders of tensors, which learn too."""
    plan = training_plan(settings_from({"finetune": {"objective": objective}}))
    config = replace(
        plan.finetune,
        replays_per_experience=sizes.replays,
        max_duration_s=None,
        trained_encoders=TRAINED,
        seed=seed,
    )
    return finetune(
        parent,
        experiences,
        rehearsal,
        config=config,
        rewards=rewards_on(model, experiences, pessimism=plan.pessimism),
    )


def pretrained(spec: ModelSpec, prototypes: Floats, sizes: Sizes, rng: np.random.Generator, seed: int) -> FusionPolicy:
    splits = []
    for n in (sizes.labelled, sizes.judged):
        drawn = _draw(prototypes, n, rng)
        any_of_four = drawn.first + rng.integers(ANSWERS, size=n)
        splits.append(_labelled(spec, drawn, np.where(drawn.labelled_mask, drawn.liked, any_of_four)))
    config = PretrainConfig(max_steps=sizes.steps, patience=100, seed=seed)
    return pretrain(*splits, fusion=CONFIG, config=config).model


def thumbs(
    parent: FusionPolicy, prototypes: Floats, sizes: Sizes, rng: np.random.Generator
) -> tuple[Experiences, FeedbackTargets]:
    """Answers of the policy, floor included, and their thumbs."""
    asked = _draw(prototypes, sizes.thumbs, rng)
    builder = head_builder(Settings())
    probs = (1.0 - builder.floor) * _probabilities(parent, asked) + builder.floor / sizes.actions
    action = (probs.cumsum(axis=1) < rng.random((sizes.thumbs, 1))).sum(axis=1).clip(max=sizes.actions - 1)
    up = (action == asked.liked) ^ (rng.random(sizes.thumbs) < WRONG)
    experiences = Experiences(
        pools=asked.pools,
        index=asked.index,
        action=action,
        reward=up.astype(np.float32),
        correction=np.full(sizes.thumbs, -1),
        weight=np.ones(sizes.thumbs, np.float32),
    )
    said = [{int(a): float(r)} for a, r in zip(action, up, strict=True)]
    return experiences, build_feedback_targets(said, [1.0] * len(said), sizes.actions, exclusivity=builder.exclusivity)


def costs(numbers: tuple[int, ...]) -> list[Measure]:
    """Growth of a step's cost from the smallest to the largest number of actions."""
    seconds = {name: [_step_s(name, n) for n in numbers] for name in ("target", "sampled")}
    grown = {name: each[-1] / each[0] for name, each in seconds.items()}
    times = {name: ", ".join(f"{1e3 * s:.1f}" for s in each) for name, each in seconds.items()}
    x = tuple(map(float, numbers))
    return [
        Measure(
            f"{name}: cost of a step at {numbers[-1]} actions over that at {numbers[0]}",
            grown[name],
            goal,
            "at_most",
            note=f"{times[name]} ms at {', '.join(map(str, numbers))}",
            curve=Curve(x, tuple(1e3 * s for s in seconds[name]), "actions", "ms a step"),
        )
        for name, goal in (("target", None), ("sampled", 0.5 * grown["target"]))
    ] + [
        Measure(
            f"sampled over target: cost of a step at {numbers[-1]} actions",
            seconds["sampled"][-1] / seconds["target"][-1],
            0.2,
            "at_most",
        )
    ]


def _step_s(objective: str, actions: int, repeats: int = 12) -> float:
    """Median processor time of one step of an objective, from logits to their gradient."""
    torch.manual_seed(0)
    policy = FusionPolicy(_spec(actions), CONFIG).eval()
    rng = np.random.default_rng(0)
    asked = _draw(rng.normal(size=(2, 4, SENSES)).astype(np.float32), BATCH, rng)
    experiences = Experiences(
        pools=asked.pools,
        index=asked.index,
        action=np.zeros(BATCH, np.int64),
        reward=np.ones(BATCH, np.float32),
        correction=np.full(BATCH, -1),
        weight=np.ones(BATCH, np.float32),
    )
    plan = training_plan(Settings())
    rewards = rewards_on(RewardModel(policy), experiences, pessimism=plan.pessimism)
    embedding, reuse = torch.randn(BATCH, EMBEDDING), SamplingConfig().sample_reuse
    made: Objective
    if objective == "target":

        def known(rows: Tensor) -> Tensor:
            logits: Tensor = policy.action_head(embedding[rows])
            return logits.detach()

        made = TargetPolicy(known, known, rewards, temperature=Settings().policy.beta)
    else:
        made = Sampled(experiences, rewards, SamplingConfig(), Generator().manual_seed(0))
    logits = torch.randn(BATCH, actions, requires_grad=True)
    rows = torch.arange(BATCH)

    def some_steps() -> None:
        for step in range(reuse):
            made(logits, rows, fresh=step == 0).backward()

    return _processor_s(some_steps, repeats) / reuse


def _processor_s(call: Callable[[], object], repeats: int) -> float:
    """Median processor time of a call, the first two left out."""
    taken = []
    for _ in range(repeats + 2):
        began_s = time.process_time()
        call()
        taken.append(time.process_time() - began_s)
    return float(np.median(taken[2:]))


def _spec(actions: int) -> ModelSpec:
    senses = {name: TensorModality((SENSES,)) for name in ("sight", "sound")}
    return ModelSpec("answers", senses, tuple(map(str, range(actions))), embedding_size=EMBEDDING)


def _draw(prototypes: Floats, n: int, rng: np.random.Generator) -> Situations:
    kinds = prototypes.shape[1]
    seen, heard = rng.integers(kinds, size=(2, n))
    noise = NOISE * rng.normal(size=(2, n, SENSES)).astype(np.float32)
    first = (seen * kinds + heard) * ANSWERS
    labelled_mask = heard < kinds // 2
    liked = first + np.where(labelled_mask, 0, (seen + heard) % ANSWERS)
    return Situations(prototypes[0, seen] + noise[0], prototypes[1, heard] + noise[1], first, liked, labelled_mask)


def _labelled(spec: ModelSpec, drawn: Situations, action: Int64) -> LabelledData:
    return LabelledData(
        spec=spec,
        pools=drawn.pools,
        index=drawn.index,
        action=action,
        tower_labels={},
        tower_classes={},
        group=[""] * len(action),
    )


def _probabilities(policy: FusionPolicy, drawn: Situations) -> npt.NDArray[np.float64]:
    present = torch.ones(len(drawn.first), 2)
    with torch.no_grad():
        logits = policy(torch.from_numpy(drawn.sight), torch.from_numpy(drawn.sound), present)[1]
    probs: npt.NDArray[np.float64] = logits.double().softmax(dim=1).numpy()
    return probs


def _spread(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"

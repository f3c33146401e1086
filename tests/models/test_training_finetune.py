"""Fine-tuning on thumbs: a kind of question that no label tells is learned, and what was taught is kept.

Two sensors; the taught question (token 1) asks for the sign of the left one, the new one (token 2) for the opposite.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plaudit_models.data.labelled import LabelledData
from plaudit_models.spec import Modality, ModelSpec, TensorModality, TextModality
from plaudit_models.training.checkpoint import Checkpoint, load_checkpoint
from plaudit_models.training.config import FinetuneConfig, LoraConfig, PretrainConfig, SamplingConfig
from plaudit_models.training.data.experiences import Experiences
from plaudit_models.training.finetune import Finetuned, FinetuneProgress, finetune
from plaudit_models.training.networks.fusion import FusionConfig, FusionPolicy
from plaudit_models.training.objectives import Rewards
from plaudit_models.training.pretrain import evaluate, pretrain

SPEC = ModelSpec(
    "signs", {"sensor": TensorModality((2,)), "which": TextModality(2)}, ("minus", "plus"), embedding_size=12
)
CONFIG = FusionConfig(vocabulary_size=5, width=16, layers=1, attention_heads=2, tokens_per_modality=1)
TAUGHT, NEW = 0, 1
FEW = FinetuneConfig(max_duration_s=None, max_steps=4, replay_rows=16, rehearsal_rows=16)


def _data(n: int, question: int, seed: int) -> LabelledData:
    rng = np.random.default_rng(seed)
    sensor = (rng.choice((-1.0, 1.0), (n, 1)) * rng.uniform(0.5, 1.5, (n, 2))).astype(np.float32)
    return LabelledData(
        spec=SPEC,
        pools={"sensor": sensor, "which": np.array([[1, 0], [2, 0]])},
        index=np.stack([np.arange(n), np.full(n, question)], axis=1),
        action=((sensor[:, 0] > 0) == (question == TAUGHT)).astype(np.int64),
        tower_labels={},
        tower_classes={},
        group=[""] * n,
    )


def _experiences(n: int, seed: int, **fields: Any) -> Experiences:
    """Random answers to the new question, and a thumb for each."""
    data = _data(n, NEW, seed)
    action = np.random.default_rng(seed).integers(2, size=n)
    defaults: dict[str, Any] = {
        "action": action,
        "reward": (action == data.action).astype(np.float32),
        "correction": np.full(n, -1),
        "weight": np.ones(n, np.float32),
    }
    return Experiences(pools=data.pools, index=data.index, **(defaults | fields))


@pytest.fixture(scope="module")
def parent() -> FusionPolicy:
    config = PretrainConfig(max_steps=150, batch=64, learning_rate=1e-2)
    return pretrain(_data(640, TAUGHT, 0), _data(100, TAUGHT, 1), fusion=CONFIG, config=config).model


def _weights(model: FusionPolicy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_thumbs_teach_a_new_kind_of_question_and_rehearsal_keeps_the_old(parent: FusionPolicy) -> None:
    assert evaluate(parent, _data(400, NEW, 5)).overall < 0.2
    before, reports = _weights(parent), list[FinetuneProgress]()
    config = FinetuneConfig(max_duration_s=None, replays_per_experience=20, learning_rate=3e-3)
    rehearsal = _data(640, TAUGHT, 0)
    result = finetune(parent, _experiences(500, 7), rehearsal, config=config, on_progress=reports.append)
    assert evaluate(result.model, _data(400, NEW, 5)).overall > 0.9
    assert evaluate(result.model, _data(400, TAUGHT, 6)).overall > 0.95
    assert result.steps == 157  # 20 · 500 / 64, rounded up
    assert reports[-1].fraction == 1.0
    assert reports[-1].user_loss < reports[0].user_loss
    assert all(torch.equal(before[name], tensor) for name, tensor in parent.state_dict().items())


def test_without_rehearsal_the_old_is_forgotten(parent: FusionPolicy) -> None:
    config = FinetuneConfig(max_duration_s=None, replays_per_experience=20, learning_rate=3e-3, rehearsal_share=0.0)
    result = finetune(parent, _experiences(500, 7), _data(640, TAUGHT, 0), config=config)
    assert evaluate(result.model, _data(400, TAUGHT, 6)).overall < 0.9


def test_corrections_teach_too(parent: FusionPolicy) -> None:
    """The reward is a misleading 1 for every wrong answer, so what is learned can only come from the correction."""
    right = _data(500, NEW, 7).action
    wrong = Experiences(
        pools=_data(500, NEW, 7).pools,
        index=_data(500, NEW, 7).index,
        action=1 - right,
        reward=np.ones(500, np.float32),
        correction=right,
        weight=np.ones(500, np.float32),
    )
    config = FinetuneConfig(max_duration_s=None, replays_per_experience=20, learning_rate=3e-3)
    result = finetune(parent, wrong, _data(640, TAUGHT, 0), config=config)
    assert evaluate(result.model, _data(400, NEW, 5)).overall > 0.9


def test_users_of_no_weight_have_no_influence(parent: FusionPolicy) -> None:
    rehearsal = _data(64, TAUGHT, 0)
    thumbs = _experiences(40, 7, weight=np.zeros(40, np.float32))
    opposite = replace(thumbs, reward=1 - thumbs.reward)
    first, second = (finetune(parent, e, rehearsal, config=FEW).model for e in (thumbs, opposite))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_only_the_chosen_encoders_change(parent: FusionPolicy) -> None:
    before = _weights(parent)
    after = finetune(parent, _experiences(40, 7), _data(64, TAUGHT, 0), config=FEW).model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("encoders.sensor.") for name in changed)
    assert "encoders.which.words.weight" in changed
    assert "action_head.weight" in changed
    config = replace(FEW, trained_encoders=("tensor",))
    after = finetune(parent, _experiences(40, 7), _data(64, TAUGHT, 0), config=config).model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "encoders.sensor.net.1.weight" in changed
    assert not any(name.startswith("encoders.which.") for name in changed)


def test_the_same_seed_gives_the_same_weights(parent: FusionPolicy) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        config = replace(FEW, seed=seed)
        return finetune(parent, _experiences(40, 7), _data(64, TAUGHT, 0), config=config).model.state_dict()

    first, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["summary"], other["summary"])


def test_the_kl_term_holds_the_policy_near_its_parent(parent: FusionPolicy) -> None:
    """There is no anchor, so thumbs turn the answers to the new question round, unless a strong KL term forbids it."""

    def moved(kl_weight: float) -> float:
        config = FinetuneConfig(
            max_duration_s=None,
            replays_per_experience=20,
            rehearsal_share=0.0,
            kl_weight=kl_weight,
            learning_rate=3e-3,
        )
        model = finetune(parent, _experiences(200, 7), _data(64, TAUGHT, 0), config=config).model
        sensor = torch.from_numpy(_data(100, NEW, 5).pools["sensor"])
        contents = (sensor, torch.tensor([[2, 0]]).expand(100, -1), torch.ones(100, 2))
        with torch.no_grad():
            change: torch.Tensor = model(*contents)[1].softmax(1) - parent(*contents)[1].softmax(1)
        return change.abs().mean().item()

    assert moved(0.0) > 0.5
    assert moved(10.0) < 0.1


def test_checkpoints_and_limits(parent: FusionPolicy) -> None:
    seen: list[int] = []
    config = replace(FEW, max_steps=5, checkpoint_steps=2)
    result = finetune(
        parent,
        _experiences(100, 7),
        _data(64, TAUGHT, 0),
        config=config,
        on_checkpoint=lambda checkpoint: seen.append(checkpoint.step),
    )
    assert (seen, result.steps) == ([2, 4], 5)
    spent = replace(FEW, max_duration_s=1e-9)
    assert finetune(parent, _experiences(100, 7), _data(64, TAUGHT, 0), config=spent).steps == 0


@pytest.mark.parametrize("how", ["full", "lora", "sampled"])
def test_a_run_that_goes_on_from_a_checkpoint_ends_where_it_would_have_ended(
    parent: FusionPolicy, tmp_path: Path, how: str
) -> None:
    """To the last bit, through a file, and in the middle of a pass over the data."""
    config = replace(
        FEW,
        max_steps=9,
        checkpoint_steps=4,
        lora=LoraConfig(rank=2) if how == "lora" else None,
        sampling=SamplingConfig(samples=4, sample_reuse=2) if how == "sampled" else None,
    )
    saved: list[Checkpoint] = []

    def run(resume: Checkpoint | None = None) -> Finetuned:
        experiences, rehearsal = _experiences(40, 7), _data(64, TAUGHT, 0)
        return finetune(
            parent,
            experiences,
            rehearsal,
            config=config,
            rewards=_rewards(experiences),
            resume=resume,
            on_checkpoint=saved.append,
        )

    through = run()
    assert [checkpoint.step for checkpoint in saved] == [4, 8]
    saved[0].save(tmp_path / "checkpoint")
    resumed = run(load_checkpoint(tmp_path / "checkpoint"))
    assert resumed.steps == through.steps == 9
    expected = through.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    assert not torch.equal(expected["action_head.weight"], parent.state_dict()["action_head.weight"])


def test_a_checkpoint_of_another_run_is_refused(parent: FusionPolicy) -> None:
    saved: list[Checkpoint] = []
    arguments = (parent, _experiences(40, 7), _data(64, TAUGHT, 0))
    finetune(*arguments, config=replace(FEW, checkpoint_steps=2), on_checkpoint=saved.append)
    other = replace(FEW, lora=LoraConfig(rank=2))
    with pytest.raises(ValueError, match="checkpoint: it is of other weights"):
        finetune(*arguments, config=other, resume=saved[0])


def test_a_checkpoint_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none") is None
    (tmp_path / "broken").write_bytes(b"half a fi")
    assert load_checkpoint(tmp_path / "broken") is None


# --- low-rank updates ------------------------------------------------------------------------------------------------


def test_low_rank_updates_teach_a_new_kind_and_rehearsal_keeps_the_old(parent: FusionPolicy) -> None:
    config = FinetuneConfig(max_duration_s=None, replays_per_experience=20, learning_rate=3e-3, lora=LoraConfig())
    result = finetune(parent, _experiences(500, 7), _data(640, TAUGHT, 0), config=config)
    assert evaluate(result.model, _data(400, NEW, 5)).overall > 0.9
    assert evaluate(result.model, _data(400, TAUGHT, 6)).overall > 0.95
    assert result.model.state_dict().keys() == parent.state_dict().keys()


def test_low_rank_updates_train_few_numbers_and_move_matrices_by_their_rank(parent: FusionPolicy) -> None:
    before = _weights(parent)
    arguments = (parent, _experiences(40, 7), _data(64, TAUGHT, 0))
    result = finetune(*arguments, config=replace(FEW, lora=LoraConfig(rank=2, alpha=4.0)))
    assert result.trained_weights < finetune(*arguments, config=FEW).trained_weights / 3
    after = result.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "layers.0.expand.weight" in changed
    assert "encoders.which.near.weight" in changed
    assert not any(name.startswith("encoders.sensor.") or name.endswith(".bias") for name in changed)
    assert max(int(torch.linalg.matrix_rank((after[n] - before[n]).flatten(1), rtol=1e-3)) for n in changed) == 2


# --- by a reward model ---------------------------------------------------------------------------------------------


def _rewards(experiences: Experiences) -> Rewards:
    """The truth: the new question asks for the opposite sign of the left sensor; right is worth 1."""
    left = torch.from_numpy(experiences.pools["sensor"][experiences.index[:, 0], 0])
    return lambda rows, actions: ((left[rows] < 0)[:, None] == (actions == 1)).float()


@pytest.mark.parametrize("how", [{"sampling": SamplingConfig(), "kl_weight": 0.01}, {"target": 0.1}])
def test_what_a_reward_model_says_earns_more_and_the_taught_is_kept(parent: FusionPolicy, how: dict[str, Any]) -> None:
    """Expected reward on the new question, of which the parent gets a tenth."""
    experiences, fresh = _experiences(500, 7), _data(400, NEW, 5)
    config = FinetuneConfig(
        max_duration_s=None, replays_per_experience=40, learning_rate=3e-3, rehearsal_share=0.3, **how
    )
    result = finetune(parent, experiences, _data(640, TAUGHT, 0), config=config, rewards=_rewards(experiences))

    def expected_reward(model: FusionPolicy) -> float:
        contents = (torch.from_numpy(fresh.pools["sensor"]), torch.tensor([[2, 0]]).expand(400, -1), torch.ones(400, 2))
        with torch.no_grad():
            probs: torch.Tensor = model(*contents)[1].softmax(1)
        return probs.gather(1, torch.from_numpy(fresh.action)[:, None]).mean().item()

    assert expected_reward(result.model) > expected_reward(parent) + 0.5
    assert evaluate(result.model, _data(400, TAUGHT, 6)).overall > 0.95
    assert result.kl_to_parent > 0.1


def test_what_the_head_has_learned_the_trunk_need_not_learn(parent: FusionPolicy) -> None:
    """Served is already what users like, the opposite of the parent: the trunk stays as it is, which without the head
    turns round. Measured as the accuracy on the new question."""
    experiences, rehearsal = _experiences(500, 7), _data(640, TAUGHT, 0)
    config = FinetuneConfig(max_duration_s=None, replays_per_experience=40, learning_rate=3e-3, target=0.1)
    rewards = _rewards(experiences)
    right = 20.0 * rewards(torch.arange(500), torch.arange(2).expand(500, -1)).numpy()
    by_the_head = finetune(
        parent, experiences, rehearsal, config=config, rewards=rewards, served=lambda embedding, logits: right
    )
    alone = finetune(parent, experiences, rehearsal, config=config, rewards=rewards)
    assert evaluate(by_the_head.model, _data(400, NEW, 5)).overall < 0.2
    assert evaluate(alone.model, _data(400, NEW, 5)).overall > 0.9


def test_rehearsal_is_as_pre_training_was(parent: FusionPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words of the labelled rows are hidden, of the experiences none."""
    changed = []

    def spy(modality: Modality, items: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        changed.append((type(modality).__name__, len(items)))
        return items

    monkeypatch.setattr("plaudit_models.training.finetune.augment", spy)
    finetune(parent, _experiences(40, 7), _data(64, TAUGHT, 0), config=FEW)
    assert changed == [("TextModality", 1)] * 4  # one distinct question in each of four steps' rehearsal


@pytest.mark.parametrize("how", [{"sampling": SamplingConfig()}, {"target": 0.1}])
def test_asking_no_reward_model_is_refused(parent: FusionPolicy, how: dict[str, Any]) -> None:
    config = replace(FEW, **how)
    with pytest.raises(ValueError, match="rewards: none given"):
        finetune(parent, _experiences(40, 7), _data(64, TAUGHT, 0), config=config)


def test_experiences_that_make_no_sense_are_refused(parent: FusionPolicy) -> None:
    with pytest.raises(ValueError, match=r"reward: 1.5 of experience 3 is not in \[0, 1\]"):
        _experiences(5, 0, reward=np.array([0, 1, 0, 1.5, 2], np.float32))
    with pytest.raises(ValueError, match="weight: nan of experience 0"):
        _experiences(2, 0, weight=np.array([np.nan, 1], np.float32))
    with pytest.raises(ValueError, match=r"action: shape \(3,\) is not \(5,\)"):
        _experiences(5, 0, action=np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="experiences: none given"):
        finetune(parent, _experiences(0, 0), _data(64, TAUGHT, 0), config=FEW)

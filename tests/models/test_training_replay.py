"""Experiences in training, of fixed actions and of lists of texts: the same losses, each over its own actions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit_models.data.labelled import LabelledData
from plaudit_models.spec import ModelSpec, TextModality
from plaudit_models.training import replay
from plaudit_models.training.config import FinetuneConfig, LoraConfig, SamplingConfig
from plaudit_models.training.data.experiences import Experiences, ListedExperiences
from plaudit_models.training.finetune import finetune
from plaudit_models.training.networks.fusion import FusionConfig, FusionPolicy
from plaudit_models.training.objectives import TargetPolicy
from plaudit_models.training.replay import Listed, ListedReplay
from plaudit_models.training.schedule import use_threads

TOKENS = 3
SPEC = ModelSpec("m", {"text": TextModality(TOKENS)}, ("a", "b"), embedding_size=8, scores_text=True)
WORDS = 9
"""Token ids are 1…9: 1 is what users like, in a text that is listed."""


def a_policy() -> FusionPolicy:
    use_threads(1)
    torch.manual_seed(1)
    config = FusionConfig(vocabulary_size=1 + WORDS, width=16, layers=1, attention_heads=2, tokens_per_modality=1)
    return FusionPolicy(SPEC, config).eval()


PARENT = a_policy()


def listed(lengths: list[int], seed: int = 0, **fields: Any) -> ListedExperiences:
    """A list of texts for each length, of which the first is picked; every text is another one."""
    rng = np.random.default_rng(seed)
    n, k = len(lengths), max(lengths, default=1)
    texts = rng.integers(1, 1 + WORDS, (sum(lengths), TOKENS))
    mask = np.arange(k) < np.array(lengths).reshape(n, 1)
    places = np.zeros((n, k), np.int64)
    places[mask] = np.arange(sum(lengths))
    answers = Experiences(
        pools={"text": rng.integers(1, 1 + WORDS, (n, TOKENS))},
        index=np.arange(n).reshape(n, 1),
        action=np.zeros(n, np.int64),
        reward=np.ones(n, np.float32),
        correction=np.full(n, -1, np.int64),
        weight=np.ones(n, np.float32),
        allowed_mask=mask,
    )
    return ListedExperiences(replace(answers, **fields), texts, places)


def rehearsal(n: int = 32) -> LabelledData:
    rng = np.random.default_rng(7)
    text = rng.integers(1, 1 + WORDS, (n, TOKENS))
    return LabelledData(
        spec=SPEC,
        pools={"text": text},
        index=np.arange(n).reshape(n, 1),
        action=(text[:, 0] > 4).astype(np.int64),
        tower_labels={},
        tower_classes={},
        group=[""] * n,
    )


def logits_by_hand(model: FusionPolicy, data: ListedExperiences, row: int) -> torch.Tensor:
    """e(x)·v(text) for each text of one list, one by one."""
    mask = data.answers.allowed_mask
    assert mask is not None
    with torch.no_grad():
        content = torch.from_numpy(data.answers.pools["text"][data.answers.index[row]])
        embedding, _ = model(content, torch.ones(1, 1))
        own = [torch.from_numpy(data.texts[[i]]) for i in data.listed[row][mask[row]]]
        return torch.stack([(embedding @ model.text_vectors(text).T)[0, 0] for text in own])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 1000))
def test_logits_of_a_list_are_those_of_its_texts_whatever_stands_beside_it(lengths: list[int], seed: int) -> None:
    data = listed(lengths, seed)
    with torch.no_grad():
        found = ListedReplay(PARENT, Listed(data), ("text",)).logits(torch.arange(len(lengths)))
    for row, k in enumerate(lengths):
        expected = logits_by_hand(PARENT, data, row)
        torch.testing.assert_close(found[row, :k], expected, atol=1e-5, rtol=1e-4)
        probs = torch.softmax(found[row], dim=0)
        assert probs[k:].sum() == 0.0
        torch.testing.assert_close(probs[:k], torch.softmax(expected, dim=0), atol=1e-5, rtol=1e-4)


def test_lists_that_make_no_sense_are_refused() -> None:
    data = listed([2, 3])
    with pytest.raises(ValueError, match="names a text that is none of the 4"):
        ListedExperiences(data.answers, data.texts[:4], data.listed)
    with pytest.raises(ValueError, match="is not that of allowed_mask"):
        ListedExperiences(data.answers, data.texts, data.listed[:, :2])


def test_a_step_takes_no_more_texts_than_it_can_bear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MAX_TEXTS", 6)
    part = ListedReplay(PARENT, Listed(listed([5, 1, 2, 4])), ("text",))
    assert part.take(torch.tensor([0, 1, 2, 3])).tolist() == [0, 1]
    assert part.take(torch.tensor([3, 1, 0])).tolist() == [3, 1]
    monkeypatch.setattr(replay, "MAX_TEXTS", 3)
    assert part.take(torch.tensor([0, 1])).tolist() == [0]  # one list is always taken


def test_the_target_over_a_list_by_hand() -> None:
    """Two of three places: π_parent = (¼, ¾), π_served = (½, ½), q = (1, 0), β = 1.

    η = 1 − ½·1 = ½. π_ref = ¾·(½, ½) + ¼·(½, ½) = (½, ½): the uniform part is over the list. π* ∝ (½·e, ½), so
    (e, 1)/(e + 1). target = ½·(¼, ¾) + ½·π*. Against logits of (ln ½, ln ½) the loss is ln 2, whatever the target; of
    (ln ¼, ln ¾) it is −Σ target·ln.
    """

    def rows_of(*values: float) -> Any:
        return torch.tensor([[*values, replay.NOT_LISTED]], dtype=torch.float32).__getitem__

    def rewards(rows: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0, 0.0]])

    loss = TargetPolicy(
        rows_of(np.log(0.25), np.log(0.75)),
        rows_of(0.0, 0.0),
        rewards,
        temperature=1.0,
        allowed_mask=np.array([[True, True, False]]),
    )
    rows = torch.tensor([0])
    even = torch.tensor([[0.0, 0.0, replay.NOT_LISTED]])
    assert loss(even, rows, fresh=True).item() == pytest.approx(np.log(2.0), rel=1e-5)
    best = np.array([np.e, 1.0]) / (np.e + 1.0)
    target = 0.5 * np.array([0.25, 0.75]) + 0.5 * best
    uneven = torch.tensor([[np.log(0.25), np.log(0.75), replay.NOT_LISTED]], dtype=torch.float32)
    expected = -(target * np.log([0.25, 0.75])).sum()
    assert loss(uneven, rows, fresh=True).item() == pytest.approx(expected, rel=1e-5)


NOTHING = Experiences(
    pools={"text": np.zeros((0, TOKENS), np.int64)},
    index=np.zeros((0, 1), np.int64),
    action=np.zeros(0, np.int64),
    reward=np.zeros(0, np.float32),
    correction=np.zeros(0, np.int64),
    weight=np.zeros(0, np.float32),
)
FEW = FinetuneConfig(
    max_duration_s=None, max_steps=40, replays_per_experience=40.0, replay_rows=32, rehearsal_rows=8,
    rehearsal_share=0.2, learning_rate=5e-3,
)  # fmt: skip


def likes(data: ListedExperiences) -> np.ndarray:
    """Whether users like each place, ``[n, k]``: texts with the word 1."""
    found = (data.texts == 1).any(axis=1)[data.listed] & data.answers.allowed_mask
    return np.asarray(found, np.float32)


def thumbs(seed: int, n: int = 60) -> ListedExperiences:
    """Lists of two to four, of which any is picked, with a thumb that says whether it is liked."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 5, n)
    picked = rng.integers(0, lengths)
    data = listed(lengths.tolist(), seed, action=picked)
    return replace(data, answers=replace(data.answers, reward=likes(data)[np.arange(n), picked]))


def liked_share(model: FusionPolicy, data: ListedExperiences) -> float:
    """Mean probability of an answer that users like."""
    with torch.no_grad():
        logits = ListedReplay(model, Listed(data), ("text",)).logits(torch.arange(len(data)))
    return float((torch.softmax(logits, dim=1).numpy() * likes(data)).sum(axis=1).mean())


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"target": 0.2},
        {"sampling": SamplingConfig(samples=4, sample_reuse=2), "kl_weight": 0.01},
        {"lora": LoraConfig(rank=4)},
    ],
    ids=["likelihood", "target", "sampled", "lora"],
)
def test_thumbs_on_lists_teach_every_objective_what_is_liked_in_lists_never_seen(how: dict[str, Any]) -> None:
    data, never_seen = thumbs(1, 120), thumbs(2)
    made = Listed(data, rewards=likes(data), served=None)
    tuned = finetune(PARENT, NOTHING, rehearsal(), config=replace(FEW, **how), listed=made)
    assert liked_share(tuned.model, never_seen) > liked_share(PARENT, never_seen) + 0.1
    assert np.isfinite(tuned.kl_to_parent)
    assert tuned.kl_to_parent > 0.0


def test_corrections_on_lists_teach_too() -> None:
    data = thumbs(1, 200)
    right = likes(data).argmax(axis=1)
    named = np.where(likes(data).any(axis=1), right, -1)
    data = replace(data, answers=replace(data.answers, correction=named, reward=np.zeros(200, np.float32)))
    data = replace(data, answers=replace(data.answers, weight=(named >= 0).astype(np.float32)))
    tuned = finetune(PARENT, NOTHING, rehearsal(), config=FEW, listed=Listed(data))
    assert liked_share(tuned.model, thumbs(2)) > liked_share(PARENT, thumbs(2)) + 0.1


def test_both_kinds_are_learned_in_one_run_and_each_is_what_it_would_be_alone_at_first() -> None:
    """The first loss of a batch of both is the mean of each by its share of the rows."""
    n = 24
    fixed = Experiences(
        pools={"text": np.random.default_rng(3).integers(1, 1 + WORDS, (n, TOKENS))},
        index=np.arange(n).reshape(n, 1),
        action=np.zeros(n, np.int64),
        reward=np.ones(n, np.float32),
        correction=np.full(n, -1, np.int64),
        weight=np.ones(n, np.float32),
    )
    lists = Listed(thumbs(1, 8))
    whole = replace(FEW, max_steps=1, replay_rows=64)
    losses = []
    for experiences, of_lists in ((fixed, None), (NOTHING, lists), (fixed, lists)):
        said: list[float] = []
        finetune(
            PARENT, experiences, rehearsal(), config=whole, listed=of_lists,
            on_progress=lambda progress, said=said: said.append(progress.user_loss),  # type: ignore[misc]
        )  # fmt: skip
        losses.append(said[0])
    assert losses[2] == pytest.approx((24 * losses[0] + 8 * losses[1]) / 32, rel=1e-5)

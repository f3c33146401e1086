"""Rows over shared items, and the random changes of items."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from plaudit_models.spec import AudioModality, ImageModality, TensorModality, TextModality
from plaudit_models.training.data.augment import augment, augment_log_mel, drop_tokens
from plaudit_models.training.data.rows import drop_modalities, encode_all, encode_rows, prepare_pools
from plaudit_models.training.networks.fusion import FusionConfig, FusionPolicy
from support.builders import tiny_spec

SPEC = tiny_spec()
INDEX = torch.tensor([[0, 1, 2, 1], [2, 1, 0, -1], [0, -1, 2, 0]])


def _pools(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(1, 50, (3, *modality.shape))
        if modality.kind == "text"
        else rng.random((3, *modality.shape), np.float32)
        for name, modality in SPEC.modalities.items()
    }


def _policy() -> FusionPolicy:
    torch.manual_seed(0)
    return FusionPolicy(SPEC, FusionConfig(vocabulary_size=50, width=16, layers=1, attention_heads=2)).eval()


def test_rows_over_shared_items_are_what_forward_gives_row_by_row() -> None:
    policy, pools = _policy(), _pools()
    present = (INDEX >= 0).float()
    prepared = prepare_pools(policy, pools)
    expected = policy(*(torch.from_numpy(pools[n])[INDEX[:, i]] for i, n in enumerate(SPEC.modalities)), present)
    found = policy.fuse(encode_rows(policy, prepared, INDEX), present)
    torch.testing.assert_close(found, expected)
    frozen = {name: prepared[name] for name in ("image", "audio")}
    remembered = encode_rows(policy, prepared, INDEX, encoded=encode_all(policy, frozen))
    torch.testing.assert_close(policy.fuse(remembered, present), expected)


def test_a_change_sees_each_distinct_item_of_a_batch_once() -> None:
    policy, seen = _policy(), dict[str, int]()

    def change(name: str, content: torch.Tensor) -> torch.Tensor:
        seen[name] = len(content)
        return content

    encode_rows(policy, prepare_pools(policy, _pools()), INDEX, change)
    assert seen == {"image": 2, "audio": 2, "question": 2, "sensor": 2}


def test_a_modality_that_never_occurs_needs_no_items() -> None:
    policy, pools = _policy(), _pools()
    pools["sensor"] = np.zeros((0, 4), np.float32)
    index = INDEX.clone()
    index[:, 3] = -1
    tokens = encode_rows(policy, prepare_pools(policy, pools), index)
    assert tokens["sensor"].shape == tokens["image"].shape


def test_batch_norm_trains_on_a_batch_with_one_distinct_item() -> None:
    policy = _policy().train()
    tokens = encode_rows(policy, prepare_pools(policy, _pools()), torch.zeros(2, 4, dtype=torch.int64))
    assert all(t.isfinite().all() for t in tokens.values())


def test_dropped_modalities_never_leave_a_row_empty() -> None:
    present = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).repeat(500, 1)
    kept = drop_modalities(present, 0.5, torch.Generator().manual_seed(0))
    assert (kept <= present).all()
    assert (kept.sum(dim=1) >= 1).all()
    # A pair keeps one with probability ½, both with ¼, and both again where both were dropped: ¼. So 1.5 on average.
    assert abs(kept[::2].sum(dim=1).mean().item() - 1.5) < 0.1


def test_augmentation_follows_its_generator_and_keeps_the_shape() -> None:
    audio = torch.randn(4, 40, 20, generator=torch.Generator().manual_seed(1))
    image = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for modality, content in ((ImageModality(8, 8, 1), image), (AudioModality(), audio)):
        first, same, other = (augment(modality, content, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
        assert first.shape == content.shape
        torch.testing.assert_close(first, same, rtol=0, atol=0)
        assert not torch.equal(first, other)
        assert not torch.equal(first, content)


def test_tensors_are_not_augmented() -> None:
    content = torch.rand(4, 3)
    assert augment(TensorModality((3,)), content, torch.Generator()) is content


def test_augmented_sound_stays_within_the_gain_of_what_it_was() -> None:
    """Warping a spectrogram of zeros leaves zeros, so only the gain, within ±1, is seen: the same all over an item."""
    changed = augment_log_mel(torch.zeros(50, 16, 24), torch.Generator().manual_seed(0))
    assert changed.abs().max() <= 1
    torch.testing.assert_close(changed, changed[:, :1, :1].expand_as(changed))


def test_dropped_tokens_become_padding() -> None:
    tokens = torch.full((100, 50), 7)
    dropped = drop_tokens(tokens, torch.Generator().manual_seed(0), share=0.2)
    assert set(dropped.unique().tolist()) == {0, 7}
    assert abs((dropped == 0).float().mean().item() - 0.2) < 0.03
    assert augment(TextModality(50), tokens, torch.Generator()).shape == tokens.shape

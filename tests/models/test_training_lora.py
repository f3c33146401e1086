"""Adapters: the update by hand, where training starts, what may change, and that merging leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, nn

from plaudit_models.training.networks.lora import LowRank, adapt, merge


def _generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def test_the_update_by_hand() -> None:
    """Rank 1, α = 4, B = (1, 2)ᵀ, A = (3, 0, −1): W + 4·B·A = W + [[12, 0, −4], [24, 0, −8]]."""
    low_rank = LowRank(torch.zeros(2, 3), 1, 4.0, _generator())
    with torch.no_grad():
        low_rank.up.copy_(torch.tensor([[1.0], [2.0]]))
        low_rank.down.copy_(torch.tensor([[3.0, 0.0, -1.0]]))
    assert low_rank(torch.ones(2, 3)).tolist() == [[13.0, 1.0, -3.0], [25.0, 1.0, -7.0]]


def test_a_convolution_is_a_matrix_of_filters() -> None:
    """Rank 1 of [1, 2, 2]: B = (2), A = (1, 2, 3, 4) → 2·A laid out as the filter is; α/r = 1."""
    low_rank = LowRank(torch.zeros(1, 2, 2), 8, 1.0, _generator())
    with torch.no_grad():
        low_rank.up.copy_(torch.tensor([[2.0]]))
        low_rank.down.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert low_rank(torch.zeros(1, 2, 2)).tolist() == [[[2.0, 4.0], [6.0, 8.0]]]


def test_training_starts_from_the_weights_as_they_are() -> None:
    net, tokens = _net(), torch.tensor([[1, 2], [3, 4]])
    before = net(tokens)
    adapt(net, 2, 8.0, _generator())
    assert torch.equal(net(tokens), before)


def test_only_the_factors_are_trained_and_there_are_few() -> None:
    """Rank 2 of 7×6, 5×6 and 3×5: 2·(7 + 6) + 2·(5 + 6) + 2·(3 + 5) = 64 numbers."""
    net = _net()
    factors = adapt(net, 2, 2.0, _generator())
    assert sum(factor.numel() for factor in factors) == 64
    assert {id(w) for w in net.parameters() if w.requires_grad} == {id(factor) for factor in factors}


def test_frozen_parts_get_no_adapter() -> None:
    net = _net()
    net[0].requires_grad_(False)
    assert len(adapt(net, 2, 2.0, _generator())) == 4


def test_merged_it_does_the_same_under_the_same_names() -> None:
    net, tokens = _net(), torch.tensor([[1, 2], [3, 4]])
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.SGD(adapt(net, 1, 1.0, _generator()), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        net(tokens).square().sum().backward()
        optimizer.step()
    trained = net(tokens)
    merge(net)
    assert torch.equal(net(tokens), trained)
    after = net.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"0.weight", "1.weight", "3.weight"}
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-4) == 1


def test_the_seed_decides_the_factors() -> None:
    first, same, other = (adapt(_net(), 2, 2.0, _generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("rank", "alpha"), [(0, 1.0), (2, 0.0), (2, float("nan"))])
def test_sizes_that_make_no_sense_are_refused(rank: int, alpha: float) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} must be at least 1 and alpha {alpha}"):
        adapt(_net(), rank, alpha, _generator())


def test_nothing_to_adapt_is_refused() -> None:
    with pytest.raises(ValueError, match="none of its weight matrices may change"):
        adapt(nn.Sequential(nn.LayerNorm(3)), 2, 1.0, _generator())

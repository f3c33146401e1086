"""The posterior of the last layer by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plaudit_models.training.networks.last_layer import DIRECTIONS, LastLayer


def test_a_posterior_by_hand() -> None:
    """Rows φ = (1, 0) and (0, 2): mean |φ|² = 2.5, so that σ = ½ of what is typical makes λ = 2.5/¼ = 10. Action 0 was
    spoken of twice on the first row and with weight ½ on the second: A = diag(10 + 2, 10 + ½·4) = 12·I, and at (1, 1)
    the variance is 1/12 + 1/12 = 1/6. Action 1 has no feedback: 2/10."""
    layer = LastLayer(2, 2, 0.5)
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    row, action, weight = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), torch.tensor([1.0, 1.0, 0.5])
    layer.fit(features, row, action, weight.double())
    found = layer.variance(torch.tensor([[1.0, 1.0]]), torch.tensor([[0, 1]]))
    assert found[0].tolist() == pytest.approx([1 / 6, 0.2], abs=1e-6)


def test_before_anything_was_said_an_action_is_as_unsure_as_it_is_told_to_be() -> None:
    layer = LastLayer(3, 2, 0.5)
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(0, dtype=torch.int64)
    layer.fit(features, nothing, nothing, torch.zeros(0, dtype=torch.float64))
    variance = layer.variance(features, torch.tensor([[0, 1]]).expand(50, 2))
    assert variance.mean().item() == pytest.approx(0.25, rel=1e-4)


def test_some_actions_are_what_they_are_among_all() -> None:
    layer = LastLayer(4, 5, 0.5)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 4, generator=generator)
    action = torch.randint(5, (30,), generator=generator)
    layer.fit(features, torch.arange(30), action, torch.ones(30, dtype=torch.float64))
    every = layer.variance(features, torch.arange(5).expand(30, 5))
    some = torch.tensor([[3, 1]]).expand(30, 2)
    torch.testing.assert_close(layer.variance(features, some), every[:, [3, 1]])


def test_more_said_is_surer_and_elsewhere_nothing_changes() -> None:
    """φ along two axes; a hundred words about action 0 on the first."""
    layer = LastLayer(2, 1, 0.5)
    features = torch.eye(2).repeat(100, 1)
    layer.fit(features, torch.arange(0, 200, 2), torch.zeros(100, dtype=torch.int64), torch.ones(100).double())
    known, unknown = layer.variance(torch.eye(2), torch.zeros(2, 1, dtype=torch.int64))[:, 0].tolist()
    assert unknown == pytest.approx(0.25)
    assert known == pytest.approx(1 / (4 + 100))


def test_directions_that_were_never_looked_at_stay_unknown() -> None:
    """Of 40 features 33 vary; the one that varies least is not kept, and counts as if there were no feedback on it."""
    scales = torch.cat([torch.linspace(2.0, 1.0, DIRECTIONS), torch.tensor([0.1]), torch.zeros(7)])
    features = torch.diag(scales)[: DIRECTIONS + 1]
    layer = LastLayer(40, 1, 0.5)
    rows = torch.arange(len(features))
    layer.fit(features, rows, torch.zeros_like(rows), torch.full((len(features),), 1e6, dtype=torch.float64))
    variance = layer.variance(torch.eye(40)[[0, DIRECTIONS, 39]], torch.zeros(3, 1, dtype=torch.int64))[:, 0]
    assert variance[0].item() < 1e-5
    assert variance[1:].tolist() == pytest.approx([layer.prior_variance.item()] * 2, rel=1e-4)


def test_it_is_kept_with_the_weights_of_a_model() -> None:
    layer, again = LastLayer(3, 2, 0.5), LastLayer(3, 2, 0.5)
    layer.fit(torch.eye(3), torch.tensor([0]), torch.tensor([1]), torch.ones(1, dtype=torch.float64))
    again.load_state_dict(layer.state_dict())
    actions = torch.tensor([[0, 1]]).expand(3, 2)
    assert torch.equal(again.variance(torch.eye(3), actions), layer.variance(torch.eye(3), actions))


def test_it_can_be_written_where_not_all_directions_are_kept(tmp_path: Path) -> None:
    layer, again = LastLayer(DIRECTIONS + 8, 2, 0.5), LastLayer(DIRECTIONS + 8, 2, 0.5)
    rows = torch.arange(DIRECTIONS + 8)
    layer.fit(torch.eye(DIRECTIONS + 8), rows, rows % 2, torch.ones(len(rows), dtype=torch.float64))
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    again.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(again.basis, layer.basis)

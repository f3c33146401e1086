"""Uncertainty of a reward model: the posterior of its last layer, in closed form, on features taken as given
(Kristiadi et al. 2020, "Being Bayesian, Even Just a Bit, Fixes Overconfidence in ReLU Networks", section 4).

Each action k has a linear layer of its own on φ, the trunk's features. Feedback on k makes its precision,

    A_k = λ·I + Σ_n h_nk·φ_n·φ_nᵀ          var(x, k) = φ(x)ᵀ·A_k⁻¹·φ(x)

a sum over the feedback. It is kept along the principal directions of φ, of which there are few; what lies outside
them was never looked at and counts as unknown. Knows nothing about rewards, trunks or where weights h come from.

Notation:
    n: rows, b: rows of a batch, f: number of features, r: directions kept, a: number of actions, g: actions per row
    p: pairs of a row and an action with feedback
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DIRECTIONS = 32
"""Kept at most, so that an action costs 32² numbers however large the embedding is."""

_CHUNK_PAIRS = 4096


class LastLayer(nn.Module):
    """Before anything is known, var = scale²·|φ|²/mean|φ|², with a mean of 1.

    Args:
        features: f.
        actions: a.
        scale: standard deviation at a typical φ of an action without feedback.
    """

    def __init__(self, features: int, actions: int, scale: float) -> None:
        super().__init__()
        directions = min(features, DIRECTIONS)
        self.scale = scale
        self.register_buffer("prior_variance", torch.tensor(scale**2))
        self.register_buffer("basis", torch.eye(features, directions))
        self.register_buffer("covariance", scale**2 * torch.eye(directions).repeat(actions, 1, 1))
        self.prior_variance: Tensor
        self.basis: Tensor
        self.covariance: Tensor

    def fit(self, features: Tensor, row: Tensor, action: Tensor, weight: Tensor) -> None:
        """Compute the posterior from all feedback.

        Args:
            features: φ ``[n, f]``, of every row, with feedback or without: they say what is typical.
            row: of each pair, ``[p]``.
            action: of each pair, ``[p]``.
            weight: h ≥ 0 of each pair, ``[p]``.
        """
        phi = features.double()
        moment = phi.T @ phi / len(phi)
        directions = self.basis.shape[1]
        basis = torch.linalg.eigh(moment).eigenvectors[:, -directions:]
        prior_precision = moment.trace() / self.scale**2
        psi = phi @ basis
        precision = (prior_precision * torch.eye(directions, dtype=psi.dtype)).repeat(len(self.covariance), 1, 1)
        for some in torch.arange(len(row)).split(_CHUNK_PAIRS):
            seen = psi[row[some]]
            precision.index_add_(0, action[some], (weight[some, None] * seen)[:, :, None] * seen[:, None, :])
        self.prior_variance.copy_(1.0 / prior_precision)
        self.basis.copy_(basis)
        self.covariance.copy_(torch.linalg.inv(precision))

    def variance(self, features: Tensor, actions: Tensor) -> Tensor:
        """Variance of some actions at φ.

        Args:
            features: φ ``[b, f]``.
            actions: ``[b, g]``.

        Returns:
            ``[b, g]``.
        """
        psi = features @ self.basis
        if actions.shape[1] >= len(self.covariance):
            known = torch.einsum("abr,br->ba", psi @ self.covariance, psi).gather(1, actions)
        else:
            known = torch.einsum("bgr,br->bg", torch.einsum("br,bgrs->bgs", psi, self.covariance[actions]), psi)
        outside = (features.square().sum(dim=1) - psi.square().sum(dim=1)).clamp_min(0.0)
        return known.clamp_min(0.0) + self.prior_variance * outside[:, None]

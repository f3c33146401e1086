"""Random changes of prepared content that leave its meaning alone, so that training sees more than the data holds.

Knows the kinds of modality and nothing about models. Every function draws from the generator it is given and returns a
new tensor of the same shape.

Notation:
    u: items, c, h, w: image channels, height, width, f: mel bands, t: time steps or tokens
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional

from plaudit_models.spec import AudioModality, ImageModality, Modality, TextModality


def augment(modality: Modality, prepared: Tensor, generator: Generator) -> Tensor:
    """Change every item a little, in the way of its kind; tensors stay as they are, since their axes are unknown."""
    if isinstance(modality, ImageModality):
        return augment_image(prepared, generator)
    if isinstance(modality, AudioModality):
        return augment_log_mel(prepared, generator)
    if isinstance(modality, TextModality):
        return drop_tokens(prepared, generator, share=0.1)
    return prepared


def augment_image(image: Tensor, generator: Generator) -> Tensor:
    """Turn by up to 0.2 rad, scale and shift by up to 10 %; ``[u, c, h, w]``."""
    u = len(image)
    angle = 0.2 * _symmetric(u, generator)
    scale_y, scale_x = (1.0 + 0.1 * _symmetric(u, generator) for _ in range(2))
    shift_y, shift_x = (0.1 * _symmetric(u, generator) for _ in range(2))
    row_x = torch.stack([scale_x * angle.cos(), -scale_x * angle.sin(), shift_x], dim=1)
    row_y = torch.stack([scale_y * angle.sin(), scale_y * angle.cos(), shift_y], dim=1)
    return _warp(image, torch.stack([row_x, row_y], dim=1))


def augment_log_mel(log_mel: Tensor, generator: Generator) -> Tensor:
    """Another speaker, pace and distance: warp both axes, change the gain, hide a band and a moment; ``[u, f, t]``.

    Warping the frequency axis imitates another vocal tract (Jaitly and Hinton 2013, "Vocal Tract Length Perturbation"),
    hiding stripes is SpecAugment (Park et al. 2019).
    """
    u, f, t = log_mel.shape
    zero = torch.zeros(u)
    scale_f, shift_f = 1.0 + 0.12 * _symmetric(u, generator), 0.08 * _symmetric(u, generator)
    scale_t, shift_t = 1.0 + 0.2 * _symmetric(u, generator), 0.2 * _symmetric(u, generator)
    row_t = torch.stack([scale_t, zero, shift_t], dim=1)
    row_f = torch.stack([zero, scale_f, shift_f], dim=1)
    warped = _warp(log_mel[:, None], torch.stack([row_t, row_f], dim=1))[:, 0]
    warped = warped + _symmetric(u, generator)[:, None, None]
    hidden = _stripe(u, f, f // 8, generator)[:, :, None] | _stripe(u, t, t // 8, generator)[:, None, :]
    return torch.where(hidden, warped.mean(dim=(1, 2), keepdim=True), warped)


def drop_tokens(tokens: Tensor, generator: Generator, *, share: float) -> Tensor:
    """Replace a share of the tokens by padding; int64 ``[u, t]``."""
    return tokens.masked_fill(torch.rand(tokens.shape, generator=generator) < share, 0)


def _symmetric(u: int, generator: Generator) -> Tensor:
    """Uniform in [-1, 1), ``[u]``."""
    return 2.0 * torch.rand(u, generator=generator) - 1.0


def _warp(image: Tensor, theta: Tensor) -> Tensor:
    """Resample ``[u, c, h, w]`` by affine maps ``[u, 2, 3]`` in coordinates from -1 to 1; edges are repeated."""
    grid = functional.affine_grid(theta, list(image.shape), align_corners=False)
    return functional.grid_sample(image, grid, padding_mode="border", align_corners=False)


def _stripe(u: int, length: int, longest: int, generator: Generator) -> Tensor:
    """Bool ``[u, length]``, True on one stretch of 0 to ``longest`` positions."""
    size = (torch.rand(u, 1, generator=generator) * (longest + 1)).floor()
    start = (torch.rand(u, 1, generator=generator) * (length - size)).floor()
    at = torch.arange(length)
    return (at >= start) & (at < start + size)

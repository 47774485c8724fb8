"""Late quantisation-aware training: matrices that the forward pass sees rounded."""

from __future__ import annotations

import torch
from torch import Tensor


def straight_through(w: Tensor, bits: int) -> Tensor:
    """Round each row of w [..., in] to multiples of absmax / (2^(bits-1) - 1); gradients pass."""
    rounded = _round(w, bits)
    return w + (rounded - w).detach()


def soft_round(w: Tensor, bits: int, sharpness: float) -> Tensor:
    """Round softly: floor + sigmoid(sharpness (fraction - 1/2)), which has a gradient (#1204).

    The values are those of `straight_through` in the limit of great sharpness.
    """
    scale = _scale(w, bits)
    z = w / scale
    below = z.detach().floor()
    return (below + torch.sigmoid(sharpness * (z - below - 0.5))) * scale


def _round(w: Tensor, bits: int) -> Tensor:
    scale = _scale(w, bits)
    return (w / scale).round() * scale


def _scale(w: Tensor, bits: int) -> Tensor:
    limit = 2 ** (bits - 1) - 1
    return (w.detach().abs().amax(-1, keepdim=True) / limit).clamp_min(1e-12)

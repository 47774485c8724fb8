"""Late quantization-aware training: matrices that the forward pass sees rounded.

Near the end of training, passes see what quantization will make of the weights, so that the loss
learns to live with it; the optimizer still moves the weights themselves. Rounding has gradient 0
almost everywhere, so each form here puts another gradient in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor


def straight_through(w: Tensor, bits: int) -> Tensor:
    """Round each row of w [..., in] to multiples of absmax / (2^(bits-1) - 1).

    The gradient is passed on as if nothing had been rounded (the straight-through estimator).
    """
    scale = _scale(w, bits)
    rounded = (w / scale).round() * scale
    # the value is `rounded`; the gradient is that of w alone
    return w + (rounded - w).detach()


def soft_round(w: Tensor, bits: int, sharpness: float) -> Tensor:
    """Round softly: floor + sigmoid(sharpness (fraction - 1/2)), which has a gradient (pg#1204).

    The values are those of `straight_through` in the limit of great sharpness.
    """
    scale = _scale(w, bits)
    z = w / scale
    # the grid point below, and how far z is on the way to the next one
    below = z.detach().floor()
    return (below + torch.sigmoid(sharpness * (z - below - 0.5))) * scale


def _scale(w: Tensor, bits: int) -> Tensor:
    """Return the step of each row [..., 1]; it is held fixed when gradients are taken."""
    # symmetric: the lowest of the 2^bits integers is not used
    limit = 2 ** (bits - 1) - 1
    step: Tensor = (w.detach().abs().amax(-1, keepdim=True) / limit).clamp_min(1e-12)
    return step

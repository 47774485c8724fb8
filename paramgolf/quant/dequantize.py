"""The decoder's arithmetic, in a module of its own: the artifact carries nothing else of quant/."""

from __future__ import annotations

import torch
from torch import Tensor


def dequantize(integers: Tensor, scales: Tensor) -> Tensor:
    """Return integers [..., R, C] times scales [..., R], float32.

    One IEEE multiplication a weight, of values that float32 holds exactly: the same bits on every
    device.
    """
    return integers.to(torch.float32, copy=True).mul_(scales.float().unsqueeze(-1))

"""The operations that a fused kernel may replace, and their plain forms, which are the reference.

Shapes: B rows, T tokens, d width, H query heads, K key and value heads, D channels a head, m hidden
channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps  # of RMSNorm, as in torch.nn.functional.rms_norm
TINY = 1e-12  # the least length of a value, as in torch.nn.functional.normalize


class Operations(NamedTuple):
    """One way to compute what the functions of this module say."""

    mix_norm: Callable[..., tuple[Tensor, Tensor]]
    split_heads: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    finish_heads: Callable[..., Tensor]
    mlp: Callable[..., tuple[Tensor, Tensor]]
    nll: Callable[..., Tensor]


def norm(x: Tensor) -> Tensor:
    """Return RMSNorm over the last dimension, without a gain."""
    return F.rms_norm(x, (x.shape[-1],), eps=EPSILON)


def mix_norm(
    lanes: tuple[Tensor, ...], coefficients: Tensor | None, scale: Tensor, *, keep: bool = True
) -> tuple[Tensor, Tensor]:
    """Return a sum of lanes [B, T, d], weighted a channel at a time, and scale * its RMSNorm.

    `coefficients` are float32 [lanes, d]; without them the lanes are added as they are. Unless
    `keep`, the sum is not for use.
    """
    if coefficients is None:
        total = sum(lanes[1:], lanes[0])
    else:
        parts = [c * lane for c, lane in zip(coefficients, lanes, strict=True)]
        total = sum(parts[1:], parts[0]).to(lanes[0].dtype)
    return total, norm(total) * scale


def split_heads(
    qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return q [B, T, H, D], k and v [B, T, K, D] of a packed projection [B, T, (H + 2K) D].

    q and k are normalised, rotated by cos and sin [T, channels / 2]; q is scaled by `gain` [H]. v
    comes twice: attention and XSA both read it, and a kernel may add their gradients.
    """
    B, T, _ = qkv.shape
    H = len(gain)
    heads = qkv.view(B, T, H + 2 * kv_heads, -1)
    q, k, v = heads.split([H, kv_heads, kv_heads], dim=2)
    return rotate(norm(q), cos, sin) * gain[:, None], rotate(norm(k), cos, sin), v, v


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first channels of each head in half-split pairs (i, i + half); the rest pass."""
    half = cos.shape[-1]
    if half == 0:
        return x_BTHD
    cos, sin = cos[None, :, None].to(x_BTHD.dtype), sin[None, :, None].to(x_BTHD.dtype)
    first, second, rest = x_BTHD.split([half, half, x_BTHD.shape[-1] - 2 * half], dim=-1)
    turned = (first * cos + second * sin, second * cos - first * sin, rest)
    return torch.cat(turned, dim=-1)


def finish_heads(y: Tensor, v: Tensor, gate: Tensor | None, *, exclude: bool) -> Tensor:
    """Return attention's output y [B, T, H, D] without its part along v (XSA), times the gates.

    gate is [B, T, H]. v [B, T, K, D] are the values at the same positions; H / K heads share one.
    """
    if exclude:
        y = exclude_own_value(y, v)
    return y if gate is None else y * gate.unsqueeze(-1)


def exclude_own_value(y_BTHD: Tensor, v_BTKD: Tensor) -> Tensor:
    """Take from each head's output its part along the value at its own position (XSA)."""
    B, T, H, D = y_BTHD.shape
    grouped = y_BTHD.view(B, T, v_BTKD.shape[2], -1, D)
    direction = F.normalize(v_BTKD, dim=-1, eps=TINY).unsqueeze(3)
    along = (grouped * direction).sum(-1, keepdim=True)
    return (grouped - along * direction).view(B, T, H, D)


def activate(z: Tensor, slope: float) -> Tensor:
    """Return LeakyReLU(z)^2."""
    return F.leaky_relu(z, slope).square()


def mlp(
    lanes: tuple[Tensor, ...],
    coefficients: Tensor | None,
    scale: Tensor,
    up: Tensor,
    down: Tensor,
    slope: float,
    *,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    """Return down(LeakyReLU(up n)^2) [B, T, d], and n, the scaled norm of the lanes' sum.

    The sum is as in `mix_norm`; with `residual` it is added to the result. up is [m, d], down
    [d, m].
    """
    total, n = mix_norm(lanes, coefficients, scale, keep=residual)
    y = F.linear(activate(F.linear(n, up), slope), down)
    return total + y if residual else y, n

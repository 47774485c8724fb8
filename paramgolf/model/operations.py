"""The operations that a fused kernel may replace, and their plain forms, which are the reference.

Shapes: B rows, T tokens, d width, H query heads, K key and value heads, D channels per head, m
hidden channels of the MLP.
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


class Mix(NamedTuple):
    """A sum u = sum_i c_i * x_i of terms, and the scale of its norm, n = scale * RMSNorm(u)."""

    terms: tuple[Tensor, ...]  # x_i [B, T, d]
    scale: Tensor  # scalar
    coefficients: Tensor | None = None  # c, float32 [terms, d]: one per channel; None: all are 1


def norm(x: Tensor) -> Tensor:
    """Return RMSNorm over the last dimension, without a gain."""
    return F.rms_norm(x, (x.shape[-1],), eps=EPSILON)


def mix_norm(mix: Mix, *, keep: bool = True) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """Return a mix's sum u and its norm n, both [B, T, d].

    Unless `keep`, u is not for use: a kernel need not write it.
    """
    terms, scale, coefficients = mix
    if coefficients is None:
        u = sum(terms[1:], terms[0])
    else:
        # the coefficients are float32, and so is the sum, which is rounded to the terms' dtype once
        parts = [c * x for c, x in zip(coefficients, terms, strict=True)]
        u = sum(parts[1:], parts[0]).to(terms[0].dtype)
    return u, norm(u) * scale


def split_heads(
    qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, kv_heads: int, copies: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return q [B, T, H, D], k, v and v_xsa of a packed projection [B, T, (H + 2K) D].

    q and k are normalized, rotated by cos and sin [T, channels / 2]; q is scaled by `gain` [H]. v
    comes for each of its two readers: v_xsa [B, T, K, D] for XSA, and for attention, with its k,
    v [B, T, copies K, D], the copies of a head side by side. A kernel adds their gradients itself.
    """
    # q and k have length sqrt(D) after their norm, so `gain` alone sets how sharp attention can be
    B, T, _ = qkv.shape
    H = len(gain)
    heads = qkv.view(B, T, H + 2 * kv_heads, -1)
    q, k, v = heads.split([H, kv_heads, kv_heads], dim=2)
    k, v_attention = (x.repeat_interleave(copies, dim=2) for x in (rotate(norm(k), cos, sin), v))
    return rotate(norm(q), cos, sin) * gain[:, None], k, v_attention, v


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first channels of each head in half-split pairs (i, i + half); the rest pass."""
    half = cos.shape[-1]
    if half == 0:
        return x_BTHD
    cos, sin = cos[None, :, None].to(x_BTHD.dtype), sin[None, :, None].to(x_BTHD.dtype)
    first, second, rest = x_BTHD.split([half, half, x_BTHD.shape[-1] - 2 * half], dim=-1)
    turned = (first * cos + second * sin, second * cos - first * sin, rest)
    return torch.cat(turned, dim=-1)


def finish_heads(
    y: Tensor, v: Tensor, gate: Tensor | None, *, xsa: bool, strength: Tensor | None = None
) -> Tensor:
    """Return attention's output y [B, T, H, D], with XSA applied if `xsa`, times the gates.

    gate is [B, T, H], strength [H]: how much XSA takes, None: all. v [B, T, K, D] are the values at
    the same positions; H / K heads share one.
    """
    if xsa:
        y = exclusive_self_attention(y, v, strength)
    return y if gate is None else y * gate.unsqueeze(-1)


def exclusive_self_attention(
    y_BTHD: Tensor, v_BTKD: Tensor, strength_H: Tensor | None = None
) -> Tensor:
    """Take from each head's output its part along the value at its own position (XSA).

    y <- y - s (y . v^) v^ with v^ = v / |v|: with a head's strength s = 1, or None, what is left is
    orthogonal to v. A position's own value is at hand in the residual stream anyway, so that
    attention need only tell of the others. Source: pg#1019 and its forebears.
    """
    B, T, H, D = y_BTHD.shape
    grouped = y_BTHD.view(B, T, v_BTKD.shape[2], -1, D)  # the heads of a group share their value
    direction = F.normalize(v_BTKD, dim=-1, eps=TINY).unsqueeze(3)
    along = (grouped * direction).sum(-1, keepdim=True)
    if strength_H is not None:
        along = strength_H.to(along.dtype).view(v_BTKD.shape[2], -1, 1) * along
    return (grouped - along * direction).view(B, T, H, D)


def activate(z: Tensor, slope: float) -> Tensor:
    """Return LeakyReLU(z)^2."""
    return F.leaky_relu(z, slope).square()


def mlp(
    mix: Mix, up: Tensor, down: Tensor, slope: float, *, residual: bool
) -> tuple[Tensor, Tensor]:
    """Return down(LeakyReLU(up n)^2) [B, T, d], and n, the norm of the mix.

    With `residual` the mix's sum is added to the result. up is [m, d], down [d, m].
    """
    u, n = mix_norm(mix, keep=residual)
    y = F.linear(activate(F.linear(n, up), slope), down)
    return u + y if residual else y, n

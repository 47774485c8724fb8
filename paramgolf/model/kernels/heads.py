"""The packed projection taken apart into normalised, rotated heads; see operations.split_heads.

One program works on a run of tokens of one head: a query, a key or a value head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from paramgolf.model.kernels.launch import launch, operator
from paramgolf.model.operations import EPSILON

TOKENS = 16  # of a tile


@triton.jit
def _rotated(x, partner, cos, sin, sign, token, channel, length, HALF: tl.constexpr):
    """Rotate pairs (i, i + half) by the angle of their position; `sign` -1 turns back."""
    turning = (token >= 0)[:, None] & (channel < 2 * HALF)[None, :]
    at = (token % length)[:, None] * HALF + (channel % HALF)[None, :]
    c = tl.load(cos + at, mask=turning, other=1.0)
    s = tl.load(sin + at, mask=turning, other=0.0)
    return x * c + partner * s * tl.where(channel < HALF, sign, -sign)[None, :]


@triton.jit
def _partner(channel, HALF: tl.constexpr):
    """Return the other channel of each one's pair, or itself where nothing turns."""
    swapped = tl.where(channel < HALF, channel + HALF, channel - HALF)
    return tl.where(channel < 2 * HALF, swapped, channel)


@triton.jit
def _forward(
    qkv, gain, cos, sin, q, k, v, tokens, length,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, HALF: tl.constexpr,
    TOKENS: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.arange(0, WIDE)
    live = (token < tokens)[:, None] & (channel < D)[None, :]
    row = qkv + (token * ((H + 2 * K) * D) + head * D)[:, None]
    x = tl.load(row + channel[None, :], mask=live, other=0.0).to(tl.float32)
    if head >= H + K:
        at = (token * (K * D) + (head - H - K) * D)[:, None] + channel[None, :]
        tl.store(v + at, x, mask=live)
    else:
        inverse = tl.rsqrt(tl.sum(x * x, 1) / D + EPSILON)[:, None]
        partner = x
        if HALF > 0:
            other = _partner(channel, HALF)
            partner = tl.load(row + other[None, :], mask=live, other=0.0).to(tl.float32)
            x = _rotated(x, partner, cos, sin, 1.0, token, channel, length, HALF)
        if head < H:
            at = (token * (H * D) + head * D)[:, None] + channel[None, :]
            tl.store(q + at, x * inverse * tl.load(gain + head).to(tl.float32), mask=live)
        else:
            at = (token * (K * D) + (head - H) * D)[:, None] + channel[None, :]
            tl.store(k + at, x * inverse, mask=live)


@triton.jit
def _backward(
    qkv, gain, cos, sin, dq, dk, dv, dv_again, d_qkv, partial, tokens, length,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, HALF: tl.constexpr,
    TOKENS: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.arange(0, WIDE)
    live = (token < tokens)[:, None] & (channel < D)[None, :]
    at = (token * ((H + 2 * K) * D) + head * D)[:, None] + channel[None, :]
    if head >= H + K:
        source = (token * (K * D) + (head - H - K) * D)[:, None] + channel[None, :]
        g = tl.load(dv + source, mask=live, other=0.0).to(tl.float32)
        g += tl.load(dv_again + source, mask=live, other=0.0).to(tl.float32)
        tl.store(d_qkv + at, g, mask=live)
    else:
        x = tl.load(qkv + at, mask=live, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(x * x, 1) / D + EPSILON)[:, None]
        unit = x * inverse
        if head < H:
            row = dq + (token * (H * D) + head * D)[:, None]
        else:
            row = dk + (token * (K * D) + (head - H) * D)[:, None]
        g = tl.load(row + channel[None, :], mask=live, other=0.0).to(tl.float32)
        if HALF > 0:
            other = _partner(channel, HALF)
            partner = tl.load(row + other[None, :], mask=live, other=0.0).to(tl.float32)
            g = _rotated(g, partner, cos, sin, -1.0, token, channel, length, HALF)
        if head < H:
            tl.store(partial + tl.program_id(0) * H + head, tl.sum(tl.sum(g * unit, 1), 0))
            g *= tl.load(gain + head).to(tl.float32)
        along = (tl.sum(g * unit, 1) / D)[:, None]
        tl.store(d_qkv + at, inverse * (g - unit * along), mask=live)


def _launch(kernel, qkv, gain, cos, sin, kv_heads, *others):  # type: ignore[no-untyped-def]
    B, T, width = qkv.shape
    heads = len(gain) + 2 * kv_heads
    launch(
        kernel, (triton.cdiv(B * T, TOKENS), heads), qkv, gain, cos, sin, *others, B * T, T,
        H=len(gain), K=kv_heads, D=width // heads, WIDE=triton.next_power_of_2(width // heads),
        HALF=cos.shape[-1], TOKENS=TOKENS, EPSILON=EPSILON,
    )  # fmt: skip


@operator("split_heads")
def _split_heads(
    qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, width = qkv.shape
    heads = len(gain), kv_heads, kv_heads
    q, k, v = (qkv.new_empty(B, T, count, width // sum(heads)) for count in heads)
    _launch(_forward, qkv, gain, cos, sin, kv_heads, q, k, v)
    return q, k, v


@operator("split_heads_backward")
def _split_heads_backward(
    qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, kv_heads: int,
    dq: Tensor, dk: Tensor, dv: Tensor, dv_again: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradient of qkv, and that of gain in parts, float32 [tiles, H]."""
    d_qkv = torch.empty_like(qkv)
    tiles = triton.cdiv(qkv.shape[0] * qkv.shape[1], TOKENS)
    partial = qkv.new_empty(tiles, len(gain), dtype=torch.float32)
    _launch(_backward, qkv, gain, cos, sin, kv_heads, dq, dk, dv, dv_again, d_qkv, partial)
    return d_qkv, partial


class SplitHeads(torch.autograd.Function):
    """q, k and v, and v once more, so that its two gradients are added in the same pass.

    A Function, since an operator may not return one tensor twice.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `split_heads` does."""
        *tensors, ctx.kv_heads = inputs
        ctx.save_for_backward(*tensors)
        q, k, v = _split_heads(*inputs)
        return q, k, v, v.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of qkv and gain."""
        own = (g.contiguous() for g in gradients)
        d_qkv, partial = _split_heads_backward(*ctx.saved_tensors, ctx.kv_heads, *own)
        return d_qkv, partial.sum(0).to(ctx.saved_tensors[1].dtype), None, None, None


def split_heads(
    qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As operations.split_heads; v is a copy, so that its gradients join the others' at once."""
    return SplitHeads.apply(qkv.contiguous(), gain, cos, sin, kv_heads)  # type: ignore[no-any-return]

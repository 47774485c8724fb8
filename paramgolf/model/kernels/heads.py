"""The packed projection taken apart into normalized, rotated heads; see operations.split_heads.

Forward, for the D channels x of one head at position t, with g the gain of a query head and R_t the
rotation of channel pairs (i, i + half) by the angles of t:
    r = 1 / sqrt(mean(x^2) + eps),   e = r x,   q = g R_t e,   k = R_t e,   v = x
r is a number per head, so R_t (r x) = r (R_t x): one pass over the row computes r and rotates x.

Backward, of the gradient dy of q (or of k, with g = 1). R_t is orthogonal, so its transpose turns
back by the same angles:
    de = g R_t^T dy,   dx = r (de - e mean(de * e)),   dg = sum over tokens of (R_t^T dy) . e
k and v are written in as many copies as attention is to have, and v was handed out to XSA, too: dy
is the sum of all their gradients. Nothing but the input is kept: r is computed again. One program
works on a run of tokens of one head: a query, a key or a value head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from paramgolf.model.kernels.launch import launch, operator
from paramgolf.model.operations import EPSILON

# 16 rows of 64 bfloat16 are 2 KiB per tensor, a load of 16 bytes for each of 4 warps' threads
TOKENS = 16  # of a tile


@triton.jit
def _rotated(x, partner, cos, sin, sign, token, channel, length, HALF: tl.constexpr):
    """Return x cos + partner sin, minus for the second of a pair; `sign` -1 turns back.

    x and partner are tiles [TOKENS, WIDE], cos and sin [length, HALF]; channels from 2 HALF on do
    not turn (cos 1, sin 0).
    """
    # all tokens, and the first channels alone
    turning = (token >= 0)[:, None] & (channel < 2 * HALF)[None, :]
    at = (token % length)[:, None] * HALF + (channel % HALF)[None, :]
    c = tl.load(cos + at, mask=turning, other=1.0)
    s = tl.load(sin + at, mask=turning, other=0.0)
    # (x1, x2) -> (x1 cos + x2 sin, x2 cos - x1 sin): the second of a pair has the other sign
    return x * c + partner * s * tl.where(channel < HALF, sign, -sign)[None, :]


@triton.jit
def _partner(channel, HALF: tl.constexpr):
    """Return the other channel of each one's pair, or itself where nothing turns."""
    swapped = tl.where(channel < HALF, channel + HALF, channel - HALF)
    return tl.where(channel < 2 * HALF, swapped, channel)


@triton.jit
def _store(y, x, at, live, D: tl.constexpr, COPIES: tl.constexpr):
    """Write a tile to each of a head's copies, which lie side by side."""
    for copy in tl.static_range(COPIES):
        tl.store(y + at + copy * D, x, mask=live)


@triton.jit
def _load(dy, at, live, D: tl.constexpr, COPIES: tl.constexpr):
    """Return the sum of the gradients of a head's copies, float32."""
    total = tl.load(dy + at, mask=live, other=0.0).to(tl.float32)
    for copy in tl.static_range(1, COPIES):
        total += tl.load(dy + at + copy * D, mask=live, other=0.0).to(tl.float32)
    return total


@triton.jit
def _forward(
    qkv, gain, cos, sin, q, k, v, tokens, length,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, HALF: tl.constexpr,
    COPIES: tl.constexpr, TOKENS: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """Write q [tokens, H, D], k and v [tokens, K, COPIES, D] of qkv [tokens, (H + 2K) D].

    Heads are in the order of qkv: H query heads, K key heads, K value heads. gain is [H], cos and
    sin are [length, HALF] for rows of `length` tokens. WIDE is the next power of two from D.
    """
    head = tl.program_id(1)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.arange(0, WIDE)
    live = (token < tokens)[:, None] & (channel < D)[None, :]
    # a row of qkv holds all heads of a token, one after another
    row = qkv + (token * ((H + 2 * K) * D) + head * D)[:, None]
    x = tl.load(row + channel[None, :], mask=live, other=0.0).to(tl.float32)
    if head >= H + K:
        # a value head is copied: attention wants its heads dense
        at = (token * (K * COPIES * D) + (head - H - K) * COPIES * D)[:, None] + channel[None, :]
        _store(v, x, at, live, D, COPIES)
    else:
        # r of each token; channels beyond D are 0 and add nothing
        inverse = tl.rsqrt(tl.sum(x * x, 1) / D + EPSILON)[:, None]
        if HALF > 0:
            # the partners are in other threads' registers; to load them again hits the cache
            other = _partner(channel, HALF)
            partner = tl.load(row + other[None, :], mask=live, other=0.0).to(tl.float32)
            x = _rotated(x, partner, cos, sin, 1.0, token, channel, length, HALF)
        if head < H:
            at = (token * (H * D) + head * D)[:, None] + channel[None, :]
            # the gain is the head's, so it too is one factor of the row
            tl.store(q + at, x * inverse * tl.load(gain + head).to(tl.float32), mask=live)
        else:
            at = (token * (K * COPIES * D) + (head - H) * COPIES * D)[:, None] + channel[None, :]
            _store(k, x * inverse, at, live, D, COPIES)


@triton.jit
def _backward(
    qkv, gain, cos, sin, dq, dk, dv, dv_xsa, d_qkv, partial, tokens, length,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, HALF: tl.constexpr,
    COPIES: tl.constexpr, TOKENS: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """Write d_qkv, and this program's part of dg to partial, float32 [programs, H].

    Shapes are those of `_forward`; dv_xsa [tokens, K, D] is the gradient of XSA's value.
    """
    head = tl.program_id(1)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.arange(0, WIDE)
    live = (token < tokens)[:, None] & (channel < D)[None, :]
    at = (token * ((H + 2 * K) * D) + head * D)[:, None] + channel[None, :]
    if head >= H + K:
        source = (token * (K * D) + (head - H - K) * D)[:, None]
        # added here, the gradients of v's readers cost no pass of their own
        g = _load(dv, source * COPIES + channel[None, :], live, D, COPIES)
        g += tl.load(dv_xsa + source + channel[None, :], mask=live, other=0.0).to(tl.float32)
        tl.store(d_qkv + at, g, mask=live)
    else:
        x = tl.load(qkv + at, mask=live, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(x * x, 1) / D + EPSILON)[:, None]
        # e, as forward had it
        unit = x * inverse
        other = _partner(channel, HALF) if HALF > 0 else channel
        if head < H:
            row = (token * (H * D) + head * D)[:, None]
            g = _load(dq, row + channel[None, :], live, D, 1)
            partner = _load(dq, row + other[None, :], live, D, 1)
        else:
            row = (token * (K * COPIES * D) + (head - H) * COPIES * D)[:, None]
            g = _load(dk, row + channel[None, :], live, D, COPIES)
            partner = _load(dk, row + other[None, :], live, D, COPIES)
        if HALF > 0:
            # R_t^T dy: the gradient is turned back by the angles that forward turned by
            g = _rotated(g, partner, cos, sin, -1.0, token, channel, length, HALF)
        if head < H:
            # dg sums over every token: a part from each program, in a place of its own, and no
            # atomics
            tl.store(partial + tl.program_id(0) * H + head, tl.sum(tl.sum(g * unit, 1), 0))
            g *= tl.load(gain + head).to(tl.float32)
        # g is de by now; what of it lies along e would change the length, which the norm undoes
        along = (tl.sum(g * unit, 1) / D)[:, None]
        tl.store(d_qkv + at, inverse * (g - unit * along), mask=live)


def _launch(kernel, qkv, gain, cos, sin, kv_heads, copies, *others):  # type: ignore[no-untyped-def]
    B, T, width = qkv.shape
    heads = len(gain) + 2 * kv_heads
    launch(
        kernel, (triton.cdiv(B * T, TOKENS), heads), qkv, gain, cos, sin, *others, B * T, T,
        H=len(gain), K=kv_heads, D=width // heads, WIDE=triton.next_power_of_2(width // heads),
        HALF=cos.shape[-1], COPIES=copies, TOKENS=TOKENS, EPSILON=EPSILON,
    )  # fmt: skip


@operator("split_heads")
def _split_heads(
    qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, kv_heads: int, copies: int
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, width = qkv.shape
    D = width // (len(gain) + 2 * kv_heads)
    q = qkv.new_empty(B, T, len(gain), D)
    k, v = (qkv.new_empty(B, T, kv_heads * copies, D) for _ in range(2))
    _launch(_forward, qkv, gain, cos, sin, kv_heads, copies, q, k, v)
    return q, k, v


@operator("split_heads_backward")
def _split_heads_backward(
    qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, kv_heads: int, copies: int,
    dq: Tensor, dk: Tensor, dv: Tensor, dv_xsa: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradient of qkv, and that of gain in parts, float32 [tiles, H]."""
    d_qkv = torch.empty_like(qkv)
    tiles = triton.cdiv(qkv.shape[0] * qkv.shape[1], TOKENS)
    partial = qkv.new_empty(tiles, len(gain), dtype=torch.float32)
    _launch(_backward, qkv, gain, cos, sin, kv_heads, copies, dq, dk, dv, dv_xsa, d_qkv, partial)
    return d_qkv, partial


class SplitHeads(torch.autograd.Function):
    """q, k and v, and v once more, so that its two gradients are added in the same pass.

    A Function around the operator, since an operator may not return one tensor twice.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `split_heads` does."""
        *tensors, kv_heads, copies = inputs
        ctx.save_for_backward(*tensors)
        ctx.heads = kv_heads, copies
        q, k, v = _split_heads(*inputs)
        return q, k, v, v[:, :, ::copies].detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of qkv and gain."""
        dense = (g.contiguous() for g in gradients)
        d_qkv, partial = _split_heads_backward(*ctx.saved_tensors, *ctx.heads, *dense)
        return d_qkv, partial.sum(0).to(ctx.saved_tensors[1].dtype), None, None, None, None


def split_heads(
    qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, kv_heads: int, copies: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As operations.split_heads; v_xsa is the first of v's copies."""
    return SplitHeads.apply(qkv.contiguous(), gain, cos, sin, kv_heads, copies)  # type: ignore[no-any-return]

"""XSA and head gates on attention's output, in one pass; see operations.finish_heads.

Forward, for a head's output y [D], its group's value v [D] at the same position, its gate g and the
head's strength s, which is 1 unless it is learned:
    w = v / max(|v|, tiny),   a = y . w,   z = y - s a w,   out = g z

Backward, of the gradient do of `out`:
    dg = do . z,   dz = g do
    da = -(dz . w),   dy = dz + s da w,   ds = sum over tokens of da a
    dw = sum over the group's heads of s (da y - a dz),   dv = (dw - w (dw . w)) / |v|
The last is the derivative of a direction: what lies along w changes the length alone. Inputs alone
are kept; w and a cost a few operations per loaded byte to compute again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from paramgolf.model.kernels.launch import launch, operator
from paramgolf.model.operations import TINY

# A program has all heads of a group, so that their value is loaded once and dw needs no atomics.
ITEMS = 16  # pairs (token, value head) of a tile: 2 KiB of a tensor at 64 channels of bfloat16


@triton.jit
def _direction(
    v, item, channel, live, spacing,
    TINY: tl.constexpr, XSA: tl.constexpr, ITEMS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Load a tile of values [ITEMS, D], and return their directions w and 1 / |v|."""
    if XSA:
        at = item[:, None] * spacing + channel[None, :]
        x = tl.load(v + at, mask=live, other=0.0).to(tl.float32)
        # as torch.nn.functional.normalize has it: a value of 0 has the direction 0
        inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), TINY)
        return x * inverse[:, None], inverse
    # gates alone: no direction is read, and the compiler drops it
    return tl.zeros((ITEMS, WIDE), tl.float32), tl.zeros((ITEMS,), tl.float32)


@triton.jit
def _forward(
    y, v, gate, strength, out, items, spacing,
    GROUP: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, KV_HEADS: tl.constexpr,
    XSA: tl.constexpr, GATED: tl.constexpr, LEARNED: tl.constexpr,
    ITEMS: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """Write `out` for ITEMS values and the GROUP heads of each.

    y and out are [items, GROUP, D], gate [items, GROUP], strength [KV_HEADS, GROUP]; an item is a
    value head at a token, and begins in v `spacing` entries after the one before. WIDE is the next
    power of two from D.
    """
    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    channel = tl.arange(0, WIDE)
    live = (item < items)[:, None] & (channel < D)[None, :]
    unit, _ = _direction(v, item, channel, live, spacing, TINY, XSA, ITEMS, WIDE)
    for g in tl.static_range(GROUP):
        # query head g of the group of this value
        at = ((item * GROUP + g) * D)[:, None] + channel[None, :]
        x = tl.load(y + at, mask=live, other=0.0).to(tl.float32)
        if XSA:
            along = tl.sum(x * unit, 1)
            if LEARNED:
                along *= tl.load(strength + item % KV_HEADS * GROUP + g)
            x -= along[:, None] * unit
        if GATED:
            x *= tl.load(gate + item * GROUP + g, mask=item < items, other=0.0).to(tl.float32)[
                :, None
            ]
        tl.store(out + at, x, mask=live)


@triton.jit
def _backward(
    y, v, gate, strength, d_out, dy, dv, d_gate, d_strength, items, spacing,
    GROUP: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, KV_HEADS: tl.constexpr,
    XSA: tl.constexpr, GATED: tl.constexpr, LEARNED: tl.constexpr,
    ITEMS: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """Write dy, dv [items, D], d_gate and each item's part of ds [items, GROUP].

    Shapes are those of `_forward`.
    """
    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    channel = tl.arange(0, WIDE)
    live = (item < items)[:, None] & (channel < D)[None, :]
    unit, inverse = _direction(v, item, channel, live, spacing, TINY, XSA, ITEMS, WIDE)
    # dw, of all heads of the group: they are visited by this program, one after another
    d_unit = tl.zeros((ITEMS, WIDE), tl.float32)
    for g in tl.static_range(GROUP):
        at = ((item * GROUP + g) * D)[:, None] + channel[None, :]
        x = tl.load(y + at, mask=live, other=0.0).to(tl.float32)
        dx = tl.load(d_out + at, mask=live, other=0.0).to(tl.float32)
        along = tl.sum(x * unit, 1)[:, None]
        share = 1.0
        if LEARNED:
            share = tl.load(strength + item % KV_HEADS * GROUP + g)[:, None]
        if GATED:
            # z, for the gate's gradient, before dx becomes dz
            kept = x - share * along * unit
            here = gate + item * GROUP + g
            tl.store(d_gate + item * GROUP + g, tl.sum(dx * kept, 1), mask=item < items)
            dx *= tl.load(here, mask=item < items, other=0.0).to(tl.float32)[:, None]
        if XSA:
            # da; dx is dz here
            d_along = -tl.sum(dx * unit, 1)[:, None]
            if LEARNED:
                part = tl.sum(d_along * along, 1)
                tl.store(d_strength + item * GROUP + g, part, mask=item < items)
            d_unit += share * (d_along * x - along * dx)
            dx += share * d_along * unit
        tl.store(dy + at, dx, mask=live)
    if XSA:
        # the direction's derivative; see the module
        d_value = (d_unit - unit * tl.sum(d_unit * unit, 1)[:, None]) * inverse[:, None]
        tl.store(dv + item[:, None] * D + channel[None, :], d_value, mask=live)


def _launch(kernel, y, v, gate, strength, others, xsa):  # type: ignore[no-untyped-def]
    items, head_dim = v.numel() // v.shape[-1], v.shape[-1]
    launch(
        kernel, (triton.cdiv(items, ITEMS),),
        y, v, y if gate is None else gate, y if strength is None else strength, *others, items,
        v.stride(-2), GROUP=y.shape[-2] // v.shape[-2], D=head_dim,
        WIDE=triton.next_power_of_2(head_dim), KV_HEADS=v.shape[-2], XSA=xsa,
        GATED=gate is not None, LEARNED=strength is not None, ITEMS=ITEMS, TINY=TINY,
    )  # fmt: skip


@operator("finish_heads")
def _finish_heads(
    y: Tensor, v: Tensor, gate: Tensor | None, strength: Tensor | None, xsa: bool
) -> Tensor:
    out = torch.empty_like(y)
    _launch(_forward, y, v, gate, strength, (out,), xsa)
    return out


@operator("finish_heads_backward")
def _finish_heads_backward(
    y: Tensor, v: Tensor, gate: Tensor | None, strength: Tensor | None, d_out: Tensor, xsa: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dy = torch.empty_like(y)
    dv = v.new_empty(v.shape if xsa else 0)
    d_gate = v.new_empty(0) if gate is None else torch.empty_like(gate)
    parts = v.new_empty(0 if strength is None else y.shape[:-1], dtype=torch.float32)
    _launch(_backward, y, v, gate, strength, (d_out, dy, dv, d_gate, parts), xsa)
    return dy, dv, d_gate, parts


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]  # noqa: ARG001
    *tensors, ctx.xsa = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, d_out):  # type: ignore[no-untyped-def]
    y, v, gate, strength = ctx.saved_tensors
    dy, dv, d_gate, parts = _finish_heads_backward(
        y, v, gate, strength, d_out.contiguous(), ctx.xsa
    )
    d_strength = None if strength is None else parts.flatten(0, -2).sum(0).to(strength.dtype)
    return dy, dv if ctx.xsa else None, None if gate is None else d_gate, d_strength, None


_finish_heads.register_autograd(_differentiate, setup_context=_save)


def finish_heads(
    y: Tensor, v: Tensor, gate: Tensor | None, *, xsa: bool, strength: Tensor | None = None
) -> Tensor:
    """As operations.finish_heads."""
    gate = None if gate is None else gate.contiguous()
    strength = None if strength is None else strength.contiguous()
    _, T, K, _ = v.shape
    spacing = v.stride(2)
    # of a head's copies the first is read where it lies, which takes no pass
    if v.stride() != (T * K * spacing, K * spacing, spacing, 1):
        v = v.contiguous()
    return _finish_heads(y.contiguous(), v, gate, strength, xsa)  # type: ignore[no-any-return]

"""XSA and head gates on attention's output, in one pass; see operations.finish_heads.

Forward, for a head's output y [D], its group's value v [D] at the same position, and its gate g:
    w = v / max(|v|, tiny),   a = y . w,   z = y - a w,   out = g z

Backward, of the gradient do of `out`:
    dg = do . z,   dz = g do
    da = -(dz . w),   dy = dz + da w
    dw = sum over the group's heads of (da y - a dz),   dv = (dw - w (dw . w)) / |v|
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
def _direction(v, at, live, TINY: tl.constexpr, XSA: tl.constexpr, ITEMS: tl.constexpr):
    """Load a tile of values [ITEMS, D], and return their directions w and 1 / |v|."""
    if XSA:
        x = tl.load(v + at, mask=live, other=0.0).to(tl.float32)
        # as torch.nn.functional.normalize has it: a value of 0 has the direction 0
        inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), TINY)
        return x * inverse[:, None], inverse
    # gates alone: no direction is read, and the compiler drops it
    return tl.zeros((ITEMS, at.shape[1]), tl.float32), tl.zeros((ITEMS,), tl.float32)


@triton.jit
def _forward(
    y, v, gate, out, items,
    GROUP: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    XSA: tl.constexpr, GATED: tl.constexpr, ITEMS: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """Write `out` for ITEMS values and the GROUP heads of each.

    y and out are [items, GROUP, D], v [items, D], gate [items, GROUP]; an item is a value head at a
    token. WIDE is the next power of two from D.
    """
    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    channel = tl.arange(0, WIDE)
    live = (item < items)[:, None] & (channel < D)[None, :]
    unit, _ = _direction(v, item[:, None] * D + channel[None, :], live, TINY, XSA, ITEMS)
    for g in tl.static_range(GROUP):
        # query head g of the group of this value
        at = ((item * GROUP + g) * D)[:, None] + channel[None, :]
        x = tl.load(y + at, mask=live, other=0.0).to(tl.float32)
        if XSA:
            x -= tl.sum(x * unit, 1)[:, None] * unit
        if GATED:
            x *= tl.load(gate + item * GROUP + g, mask=item < items, other=0.0).to(tl.float32)[
                :, None
            ]
        tl.store(out + at, x, mask=live)


@triton.jit
def _backward(
    y, v, gate, d_out, dy, dv, d_gate, items,
    GROUP: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    XSA: tl.constexpr, GATED: tl.constexpr, ITEMS: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """Write dy, dv and d_gate; shapes are those of `_forward`."""
    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    channel = tl.arange(0, WIDE)
    live = (item < items)[:, None] & (channel < D)[None, :]
    value_at = item[:, None] * D + channel[None, :]
    unit, inverse = _direction(v, value_at, live, TINY, XSA, ITEMS)
    # dw, of all heads of the group: they are visited by this program, one after another
    d_unit = tl.zeros((ITEMS, WIDE), tl.float32)
    for g in tl.static_range(GROUP):
        at = ((item * GROUP + g) * D)[:, None] + channel[None, :]
        x = tl.load(y + at, mask=live, other=0.0).to(tl.float32)
        dx = tl.load(d_out + at, mask=live, other=0.0).to(tl.float32)
        along = tl.sum(x * unit, 1)[:, None]
        if GATED:
            # z, for the gate's gradient, before dx becomes dz
            kept = x - along * unit
            here = gate + item * GROUP + g
            tl.store(d_gate + item * GROUP + g, tl.sum(dx * kept, 1), mask=item < items)
            dx *= tl.load(here, mask=item < items, other=0.0).to(tl.float32)[:, None]
        if XSA:
            # da; dx is dz here
            d_along = -tl.sum(dx * unit, 1)[:, None]
            d_unit += d_along * x - along * dx
            dx += d_along * unit
        tl.store(dy + at, dx, mask=live)
    if XSA:
        # the direction's derivative; see the module
        d_value = (d_unit - unit * tl.sum(d_unit * unit, 1)[:, None]) * inverse[:, None]
        tl.store(dv + value_at, d_value, mask=live)


def _launch(kernel, y, v, gate, others, xsa):  # type: ignore[no-untyped-def]
    items, head_dim = v.numel() // v.shape[-1], v.shape[-1]
    launch(
        kernel, (triton.cdiv(items, ITEMS),),
        y, v, y if gate is None else gate, *others, items,
        GROUP=y.shape[-2] // v.shape[-2], D=head_dim, WIDE=triton.next_power_of_2(head_dim),
        XSA=xsa, GATED=gate is not None, ITEMS=ITEMS, TINY=TINY,
    )  # fmt: skip


@operator("finish_heads")
def _finish_heads(y: Tensor, v: Tensor, gate: Tensor | None, xsa: bool) -> Tensor:
    out = torch.empty_like(y)
    _launch(_forward, y, v, gate, (out,), xsa)
    return out


@operator("finish_heads_backward")
def _finish_heads_backward(
    y: Tensor, v: Tensor, gate: Tensor | None, d_out: Tensor, xsa: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dy = torch.empty_like(y)
    dv = torch.empty_like(v) if xsa else v.new_empty(0)
    d_gate = v.new_empty(0) if gate is None else torch.empty_like(gate)
    _launch(_backward, y, v, gate, (d_out, dy, dv, d_gate), xsa)
    return dy, dv, d_gate


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]  # noqa: ARG001
    y, v, gate, ctx.xsa = inputs
    ctx.save_for_backward(y, v, gate)


def _differentiate(ctx, d_out):  # type: ignore[no-untyped-def]
    y, v, gate = ctx.saved_tensors
    dy, dv, d_gate = _finish_heads_backward(y, v, gate, d_out.contiguous(), ctx.xsa)
    return dy, dv if ctx.xsa else None, None if gate is None else d_gate, None


_finish_heads.register_autograd(_differentiate, setup_context=_save)


def finish_heads(y: Tensor, v: Tensor, gate: Tensor | None, *, xsa: bool) -> Tensor:
    """As operations.finish_heads."""
    gate = None if gate is None else gate.contiguous()
    return _finish_heads(y.contiguous(), v.contiguous(), gate, xsa)  # type: ignore[no-any-return]

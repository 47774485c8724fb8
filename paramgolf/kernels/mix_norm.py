"""Lanes mixed channel by channel and normalised, in one pass over memory; see operations.mix_norm.

Backward is one pass too: it recomputes the sum, and each program adds up its rows' share of the
coefficients' gradients, which a small sum then joins in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from paramgolf.kernels.launch import launch, operator
from paramgolf.model.operations import EPSILON

ROWS = 4  # tokens of a tile
PROGRAMS = 1056  # of the backward pass, at most: 8 a processor; each walks over many tiles
STAGES = 3  # tiles under way in a program
WARPS = 2  # of the backward pass


@triton.jit
def _term(pointer, coefficients, index: tl.constexpr, mixed: tl.constexpr, at, column, live, width):
    """Load a tile of one lane, float32, and what it adds to the sum."""
    t = tl.load(pointer + at, mask=live, other=0.0).to(tl.float32)
    if mixed:
        return t, t * tl.load(coefficients + index * width + column, mask=column < width)[None, :]
    return t, t


@triton.jit
def _sum(
    x, y, z, coefficients, at, column, live, width, TERMS: tl.constexpr, MIXED: tl.constexpr
):  # fmt: skip
    t0, u = _term(x, coefficients, 0, MIXED, at, column, live, width)
    t1, t2 = t0, t0
    if TERMS > 1:
        t1, part = _term(y, coefficients, 1, MIXED, at, column, live, width)
        u += part
    if TERMS > 2:
        t2, part = _term(z, coefficients, 2, MIXED, at, column, live, width)
        u += part
    return t0, t1, t2, u


@triton.jit
def _forward(
    x, y, z, coefficients, scale, sums, normed, rows, width,
    TERMS: tl.constexpr, MIXED: tl.constexpr, KEEP: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    at = row[:, None] * width + column[None, :]
    live = (row < rows)[:, None] & (column < width)[None, :]
    _, _, _, u = _sum(x, y, z, coefficients, at, column, live, width, TERMS, MIXED)
    u = u.to(normed.dtype.element_ty)
    if KEEP:
        tl.store(sums + at, u, mask=live)
    u = u.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(u * u, 1) / width + EPSILON) * tl.load(scale)
    tl.store(normed + at, u * inverse[:, None], mask=live)


@triton.jit
def _backward(
    x, y, z, coefficients, scale, d_sums, d_normed, dx, dy, dz, partial, rows, width,
    TERMS: tl.constexpr, MIXED: tl.constexpr, KEEP: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, EPSILON: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, WIDTH)
    inside = column < width
    s = tl.load(scale)
    a0 = tl.zeros((ROWS, WIDTH), tl.float32)
    a1, a2 = a0, a0
    for first in tl.range(
        tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES
    ):
        row = first + tl.arange(0, ROWS)
        at = row[:, None] * width + column[None, :]
        live = (row < rows)[:, None] & inside[None, :]
        t0, t1, t2, u = _sum(x, y, z, coefficients, at, column, live, width, TERMS, MIXED)
        u = u.to(dx.dtype.element_ty).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(u * u, 1) / width + EPSILON)
        unit = u * inverse[:, None]
        dn = tl.load(d_normed + at, mask=live, other=0.0).to(tl.float32) * s
        du = inverse[:, None] * (dn - unit * (tl.sum(dn * unit, 1) / width)[:, None])
        if KEEP:
            du += tl.load(d_sums + at, mask=live, other=0.0).to(tl.float32)
        if MIXED:
            tl.store(dx + at, du * tl.load(coefficients + column, mask=inside)[None, :], mask=live)
            a0 += du * t0
            if TERMS > 1:
                c = tl.load(coefficients + width + column, mask=inside)[None, :]
                tl.store(dy + at, du * c, mask=live)
                a1 += du * t1
            if TERMS > 2:
                c = tl.load(coefficients + 2 * width + column, mask=inside)[None, :]
                tl.store(dz + at, du * c, mask=live)
                a2 += du * t2
        else:
            tl.store(dx + at, du, mask=live)
    if MIXED:
        base = partial + tl.program_id(0) * TERMS * width + column
        tl.store(base, tl.sum(a0, 0), mask=inside)
        if TERMS > 1:
            tl.store(base + width, tl.sum(a1, 0), mask=inside)
        if TERMS > 2:
            tl.store(base + 2 * width, tl.sum(a2, 0), mask=inside)


def _arguments(
    x: Tensor, y: Tensor | None, z: Tensor | None, coefficients: Tensor | None, scale: Tensor,
    keep: bool,
) -> tuple[list[Tensor], dict[str, float]]:  # fmt: skip
    """Return the tensors that both kernels read, x or scale for an absent one, and constants."""
    lanes = [x if lane is None else lane for lane in (x, y, z)]
    return [*lanes, scale if coefficients is None else coefficients, scale], {
        "TERMS": 1 + (y is not None) + (z is not None),
        "MIXED": coefficients is not None,
        "KEEP": keep,
        "WIDTH": triton.next_power_of_2(x.shape[-1]),
        "ROWS": ROWS,
        "EPSILON": EPSILON,
    }


@operator("mix_norm")
def mix_forward(
    x: Tensor, y: Tensor | None, z: Tensor | None, coefficients: Tensor | None, scale: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the sum, empty unless `keep`, and its scaled norm."""
    read, constants = _arguments(x, y, z, coefficients, scale, keep)
    width = x.shape[-1]
    rows = x.numel() // width
    sums, normed = torch.empty_like(x) if keep else x.new_empty(0), torch.empty_like(x)
    grid = (triton.cdiv(rows, ROWS),)
    launch(_forward, grid, *read, sums, normed, rows, width, **constants)
    return sums, normed


@operator("mix_norm_backward")
def _mix_backward(
    x: Tensor, y: Tensor | None, z: Tensor | None, coefficients: Tensor | None, scale: Tensor,
    d_sums: Tensor, d_normed: Tensor, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, y and z, and the coefficients' in parts, [programs, terms, d]."""
    read, constants = _arguments(x, y, z, coefficients, scale, keep)
    width = x.shape[-1]
    rows = x.numel() // width
    dx = torch.empty_like(x)
    dy, dz = (
        x.new_empty(0) if lane is None or coefficients is None else torch.empty_like(x)
        for lane in (y, z)
    )
    programs = min(PROGRAMS, triton.cdiv(rows, ROWS))
    shape = (0,) if coefficients is None else (programs, *coefficients.shape)
    partial = x.new_empty(shape, dtype=torch.float32)
    launch(
        _backward, (programs,), *read, d_sums, d_normed, dx, dy, dz, partial, rows, width,
        **constants, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return dx, dy, dz, partial


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.keep = inputs
    ctx.save_for_backward(*tensors)


def mix_backward(  # type: ignore[no-untyped-def]
    x, y, z, coefficients, scale, *, d_sums, d_normed, keep
):
    """Return the gradients of x, y, z and the coefficients, None for those that are None."""
    dx, dy, dz, partial = _mix_backward(
        x, y, z, coefficients, scale, d_sums.contiguous(), d_normed.contiguous(), keep
    )
    if coefficients is None:
        return dx, None if y is None else dx, None if z is None else dx, None
    return dx, None if y is None else dy, None if z is None else dz, partial.sum(0)


def _differentiate(ctx, d_sums, d_normed):  # type: ignore[no-untyped-def]
    d_mixed = mix_backward(*ctx.saved_tensors, d_sums=d_sums, d_normed=d_normed, keep=ctx.keep)
    return *d_mixed, None, None


mix_forward.register_autograd(_differentiate, setup_context=_save)


def three(lanes: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Return one to three lanes as the kernels take them."""
    return [lane.contiguous() for lane in lanes] + [None] * (3 - len(lanes))


def mix_norm(
    lanes: tuple[Tensor, ...], coefficients: Tensor | None, scale: Tensor, *, keep: bool = True
) -> tuple[Tensor, Tensor]:
    """As operations.mix_norm, for one to three lanes."""
    return mix_forward(*three(lanes), coefficients, scale, keep)  # type: ignore[no-any-return]

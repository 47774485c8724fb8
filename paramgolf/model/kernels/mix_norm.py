"""Up to three terms mixed per channel and normalized, in one pass; see operations.mix_norm.

Forward, for each token, of terms x_i [d], coefficients c_i [d] (or 1) and the scalar s:
    u = sum_i c_i * x_i,   r = 1 / sqrt(mean(u^2) + eps),   n = s r u
r is kept for backward, one float32 per token.

Backward, of the gradients dn of n and du' of u. As dr/du_k = -r^3 u_k / d, with e = r u
    d n_j / d u_k = s r (delta_jk - e_j e_k / d)
    du   = r (s dn - e mean(s dn * e)) + du'
    dx_i = c_i du,   dc_i = sum over tokens of du * x_i
That is one pass too. With coefficients u is computed again from the terms, which cost less to read
than u would to write and read. Each program adds up dc over its rows, and a small sum joins those
parts in a fixed order: no atomics, so the result is the same at each run. Without coefficients all
dx_i are du, and e = n / s: the terms need not be kept at all.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from paramgolf.model.kernels.launch import launch, operator
from paramgolf.model.operations import EPSILON, Mix

# Four rows of 512 channels in bfloat16 are 4 KiB per term: 32 bytes for each thread of 4 warps, two
# of the widest loads there are.
ROWS = 4  # tokens of a tile
# Backward, a program walks over many tiles: with a program per tile the parts of dc, float32, would
# be half as large as the terms themselves. 8 programs of 2 warps for each of an H100's 132
# processors are few to hide the latency of memory, so the loads of 3 tiles are under way at a time.
# They are as many in a small pass, too, where some have nothing to do: a number that follows from
# the tokens would be a condition of the compiled graph, which small passes would not share then.
PROGRAMS = 1056  # of the backward pass
STAGES = 3  # tiles under way in a program
WARPS = 2  # of the backward pass


@triton.jit
def _term(pointer, coefficients, index: tl.constexpr, mixed: tl.constexpr, at, column, live, width):
    """Load a tile of one term x_i [ROWS, WIDTH], float32; return it and c_i x_i."""
    t = tl.load(pointer + at, mask=live, other=0.0).to(tl.float32)
    if mixed:
        # a coefficient per channel serves all rows of the tile: it stays in the cache
        return t, t * tl.load(coefficients + index * width + column, mask=column < width)[None, :]
    return t, t


@triton.jit
def _sum(
    x, y, z, coefficients, at, column, live, width, TERMS: tl.constexpr, MIXED: tl.constexpr
):  # fmt: skip
    """Return tiles of the terms (the first for those that are not there) and of their sum u."""
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
def normalize(
    x, y, z, coefficients, scale, sums, normed, inverses, rows, width,
    TERMS: tl.constexpr, MIXED: tl.constexpr, KEEP: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """Write u (`sums`), n (`normed`) and r (`inverses`) of ROWS tokens; return n's tile.

    x, y, z, sums, normed [rows, width]; coefficients float32 [TERMS, width]; scale a scalar;
    inverses float32 [rows]. WIDTH is the next power of two from width.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    at = row[:, None] * width + column[None, :]
    live = (row < rows)[:, None] & (column < width)[None, :]
    _, _, _, u = _sum(x, y, z, coefficients, at, column, live, width, TERMS, MIXED)
    # rounded before the norm, so that n is the norm of what the next layer will read
    u = u.to(normed.dtype.element_ty)
    if KEEP:
        tl.store(sums + at, u, mask=live)
    u = u.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(u * u, 1) / width + EPSILON)
    tl.store(inverses + row, inverse, mask=row < rows)
    # s joins r: one factor per token
    n = (u * (inverse * tl.load(scale))[:, None]).to(normed.dtype.element_ty)
    tl.store(normed + at, n, mask=live)
    return n


@triton.jit
def _forward(
    x, y, z, coefficients, scale, sums, normed, inverses, rows, width,
    TERMS: tl.constexpr, MIXED: tl.constexpr, KEEP: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """Mix and normalize ROWS tokens."""
    normalize(
        x, y, z, coefficients, scale, sums, normed, inverses, rows, width, TERMS, MIXED, KEEP,
        WIDTH, ROWS, EPSILON,
    )  # fmt: skip


@triton.jit
def _into_sum(unit, inverse, scale, d_sums, d_normed, at, live, width, KEEP: tl.constexpr):
    """Return du = r (s dn - e mean(s dn * e)) + du' of a tile, with e = `unit`, r = `inverse`."""
    dn = tl.load(d_normed + at, mask=live, other=0.0).to(tl.float32) * tl.load(scale)
    # the mean runs over all of a row, which is why a program has whole rows
    du = inverse[:, None] * (dn - unit * (tl.sum(dn * unit, 1) / width)[:, None])
    if KEEP:
        du += tl.load(d_sums + at, mask=live, other=0.0).to(tl.float32)
    return du


@triton.jit
def _backward(
    x, y, z, coefficients, inverses, scale, d_sums, d_normed, dx, dy, dz, partial, rows, width,
    TERMS: tl.constexpr, KEEP: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Write dx, dy, dz of every num_programs-th tile, and this program's part of dc.

    Shapes are those of `_forward`; partial is float32 [programs, TERMS, width].
    """
    column = tl.arange(0, WIDTH)
    inside = column < width
    # dc of each row of a tile on its own: to sum over rows in the loop would wait for all threads
    a0 = tl.zeros((ROWS, WIDTH), tl.float32)
    a1, a2 = a0, a0
    for first in tl.range(
        tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES
    ):
        row = first + tl.arange(0, ROWS)
        at = row[:, None] * width + column[None, :]
        live = (row < rows)[:, None] & inside[None, :]
        # u again, from the terms; r is kept, as its sum over the row would delay all that follows
        t0, t1, t2, u = _sum(x, y, z, coefficients, at, column, live, width, TERMS, True)
        inverse = tl.load(inverses + row, mask=row < rows, other=0.0)
        # e of u as it was rounded in forward
        unit = u.to(dx.dtype.element_ty).to(tl.float32) * inverse[:, None]
        du = _into_sum(unit, inverse, scale, d_sums, d_normed, at, live, width, KEEP)
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
    # once per program: its rows are added up, and the parts leave their registers
    base = partial + tl.program_id(0) * TERMS * width + column
    tl.store(base, tl.sum(a0, 0), mask=inside)
    if TERMS > 1:
        tl.store(base + width, tl.sum(a1, 0), mask=inside)
    if TERMS > 2:
        tl.store(base + 2 * width, tl.sum(a2, 0), mask=inside)


@triton.jit
def _norm_backward(
    normed, inverses, scale, d_sums, d_normed, dx, rows, width,
    KEEP: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write dx = du of ROWS tokens, where terms were added as they are."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    at = row[:, None] * width + column[None, :]
    live = (row < rows)[:, None] & (column < width)[None, :]
    inverse = tl.load(inverses + row, mask=row < rows, other=0.0)
    # e = n / s
    unit = tl.load(normed + at, mask=live, other=0.0).to(tl.float32) / tl.load(scale)
    du = _into_sum(unit, inverse, scale, d_sums, d_normed, at, live, width, KEEP)
    tl.store(dx + at, du, mask=live)


def _read(
    x: Tensor, y: Tensor | None, z: Tensor | None, coefficients: Tensor | None
) -> tuple[list[Tensor], int]:
    """Return what a kernel reads, x for an absent one, and how many terms there are."""
    read = [x if tensor is None else tensor for tensor in (x, y, z, coefficients)]
    return read, 1 + (y is not None) + (z is not None)


def _tiles(x: Tensor, keep: bool) -> tuple[int, int, dict[str, Any]]:
    """Return rows and width of a term, and the constants of a tile."""
    width = x.shape[-1]
    constants = {"KEEP": keep, "WIDTH": triton.next_power_of_2(width), "ROWS": ROWS}
    return x.numel() // width, width, constants


@operator("mix_norm")
def mix_forward(
    x: Tensor, y: Tensor | None, z: Tensor | None, coefficients: Tensor | None, scale: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the sum, empty unless `keep`, its scaled norm, and each token's factor, float32."""
    return run_forward(_forward, x, y, z, coefficients, scale, keep=keep)


def run_forward(
    kernel: Any, x: Tensor, y: Tensor | None, z: Tensor | None, coefficients: Tensor | None,
    scale: Tensor, *others: Any, keep: bool, **options: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch `_forward`, or a kernel that takes `others` too; return what `mix_forward` does."""
    rows, width, constants = _tiles(x, keep)
    read, terms = _read(x, y, z, coefficients)
    sums, normed = torch.empty_like(x) if keep else x.new_empty(0), torch.empty_like(x)
    inverses = x.new_empty(rows, dtype=torch.float32)
    constants |= {"TERMS": terms, "MIXED": coefficients is not None, "EPSILON": EPSILON, **options}
    grid = (triton.cdiv(rows, constants["ROWS"]),)
    made = sums, normed, inverses
    launch(kernel, grid, *read, scale, *made, *others, rows, width, **constants)
    return made


@operator("mix_norm_backward")
def _mix_backward(
    x: Tensor, y: Tensor | None, z: Tensor | None, coefficients: Tensor, inverses: Tensor,
    scale: Tensor, d_sums: Tensor, d_normed: Tensor, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, y and z, and the coefficients' in parts, [PROGRAMS, terms, d]."""
    rows, width, constants = _tiles(x, keep)
    read, terms = _read(x, y, z, coefficients)
    dx, dy, dz = (x.new_empty(0) if term is None else torch.empty_like(x) for term in (x, y, z))
    partial = x.new_empty(PROGRAMS, terms, width, dtype=torch.float32)
    launch(
        _backward, (PROGRAMS,), *read, inverses, scale, d_sums, d_normed, dx, dy, dz, partial,
        rows, width, **constants, TERMS=terms, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return dx, dy, dz, partial


@operator("norm_backward")
def _unmixed_backward(
    normed: Tensor, inverses: Tensor, scale: Tensor, d_sums: Tensor, d_normed: Tensor, keep: bool
) -> Tensor:
    """Return the gradient of terms that were added as they are, the same for each."""
    rows, width, constants = _tiles(normed, keep)
    dx = torch.empty_like(normed)
    launch(
        _norm_backward, (triton.cdiv(rows, ROWS),), normed, inverses, scale, d_sums, d_normed, dx,
        rows, width, **constants,
    )  # fmt: skip
    return dx


def kept(ctx, inputs, normed, inverses):  # type: ignore[no-untyped-def]
    """Return the tensors that `mix_backward` reads; unmixed terms are not among them."""
    x, y, z, coefficients, scale, ctx.keep = inputs
    ctx.terms = 1 + (y is not None) + (z is not None)
    terms = (normed,) if coefficients is None else (x, y, z, coefficients)
    return *terms, inverses, scale


def mix_backward(ctx, saved, d_sums, d_normed):  # type: ignore[no-untyped-def]
    """Return the gradients of x, y, z and the coefficients, None for those that are None."""
    given = *saved, d_sums.contiguous(), d_normed.contiguous(), ctx.keep
    absent = (None,) * (3 - ctx.terms)
    if len(saved) == 3:
        return *[_unmixed_backward(*given)] * ctx.terms, *absent, None
    *d_terms, partial = _mix_backward(*given)
    return *d_terms[: ctx.terms], *absent, partial.sum(0)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, normed, inverses = output
    ctx.mark_non_differentiable(inverses)
    ctx.save_for_backward(*kept(ctx, inputs, normed, inverses))


def _differentiate(ctx, d_sums, d_normed, _):  # type: ignore[no-untyped-def]
    return *mix_backward(ctx, ctx.saved_tensors, d_sums, d_normed), None, None


mix_forward.register_autograd(_differentiate, setup_context=_save)


def inputs_of(mix: Mix) -> list[Tensor | None]:
    """Return a mix of one to three terms as the kernels take it: terms, coefficients, scale."""
    absent = [None] * (3 - len(mix.terms))
    return [*(x.contiguous() for x in mix.terms), *absent, mix.coefficients, mix.scale]


def mix_norm(mix: Mix, *, keep: bool = True) -> tuple[Tensor, Tensor]:
    """As operations.mix_norm, for one to three terms."""
    total, n, _ = mix_forward(*inputs_of(mix), keep)
    return total, n

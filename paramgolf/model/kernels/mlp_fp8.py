"""The MLP inside its matrix products, in FP8; model/fp8.py has the formulas and the units.

Hopper multiplies FP8 where both factors have the inner dimension contiguous. Gradients of weights,
whose inner dimension is tokens, so need transposed copies: what makes a tensor writes both, while
it is at hand. As in kernels/mlp.py what backward keeps of the hidden layer is a alone; the sign of
z, for which e4m3 has no bit to spare, comes beside it. kernels/hidden.py makes a and dz; the sum of
y and the residual stream is made here, other products are PyTorch's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from paramgolf.model.fp8 import E4, E5, activation_unit, input_unit, shortened
from paramgolf.model.kernels import hidden
from paramgolf.model.kernels.launch import launch, operator, processors
from paramgolf.model.kernels.mix_norm import inputs_of, kept, mix_backward, normalize, run_forward
from paramgolf.model.operations import Mix
from paramgolf.model.torch_internals import short_product

# The accumulator of 128 x 256 float32 fills half of the processor's registers (128 of each of 256
# threads); a larger tile would spill, a smaller one loads more per product. A step of 128 along the
# inner dimension loads (128 + 256) * 128 bytes = 48 KiB; three steps under way are 144 of the 227
# KiB of shared memory. Tiles are written by halves, for which 32 KiB of the rest are enough.
TILE = {"M": 128, "N": 256, "K": 128}
HALF_TILE = TILE["N"] // 2  # columns that are written at once
SHORTENED = {"M": 32, "N": 128}  # the tile of `_shorten`
# Tokens that a program normalizes: as many bytes are written at once of a transposed copy, and 32
# are the least that memory takes whole. 512 channels of them are 32 numbers for each thread.
NORMED_ROWS, NORMED_WARPS = 32, 16


@triton.jit
def _to_e4(x):
    """Return x in e4m3, what is beyond as its largest number."""
    return tl.clamp(x, -448.0, 448.0).to(tl.float8e4nv)


@triton.jit
def _to_e5(x):
    """Return x in e5m2, likewise."""
    return tl.clamp(x, -57344.0, 57344.0).to(tl.float8e5)


@triton.jit
def _add_half(product, total_tiles, row, column, factor):
    """Add half a tile of y to one of the residual stream."""
    total = total_tiles.load([row, column]).to(tl.float32) + product * factor
    total_tiles.store([row, column], total.to(tl.bfloat16))


@triton.jit
def _add_product(
    x_tiles, w_tiles, total_tiles, first, second, rows, columns, inner,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Add x [rows, inner] times w [columns, inner] transposed to what total_tiles describes.

    There are as many programs as processors, and each takes every num_programs-th tile, the next
    one's loads overlapping the last one's writes.
    """
    factor = tl.load(first) * tl.load(second)
    # tiles that share rows of x are neighbors, and run at one time: they find x in the cache
    across = tl.cdiv(columns, N)
    tiles = tl.cdiv(rows, M) * across
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, column = tile // across * M, tile % across * N
        sums = tl.zeros((M, N), tl.float32)
        for k in range(tl.cdiv(inner, K)):
            sums = tl.dot(x_tiles.load([row, k * K]), w_tiles.load([column, k * K]).T, sums)
        # columns n and n + N / 2 side by side, so that split tells the halves of the tile apart
        left, right = tl.split(tl.permute(tl.reshape(sums, (M, 2, N // 2)), (0, 2, 1)))
        _add_half(left, total_tiles, row, column, factor)
        _add_half(right, total_tiles, row, column + N // 2, factor)


@triton.jit
def _normalize_short(
    x, y, z, coefficients, scale, sums, normed, inverses, short, turned, inverse, rows, width,
    TERMS: tl.constexpr, MIXED: tl.constexpr, KEEP: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """Mix and normalize ROWS tokens, and write n times `inverse` in e4m3, also transposed."""
    n = normalize(
        x, y, z, coefficients, scale, sums, normed, inverses, rows, width, TERMS, MIXED, KEEP,
        WIDTH, ROWS, EPSILON,
    )  # fmt: skip
    small = _to_e4(n.to(tl.float32) * inverse)
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    live, inside = row < rows, column < width
    at = row[:, None] * width + column[None, :]
    tl.store(short + at, small, mask=live[:, None] & inside[None, :])
    at = column[:, None] * rows + row[None, :]
    tl.store(turned + at, tl.trans(small), mask=inside[:, None] & live[None, :])


@triton.jit
def _shorten(x, out, turned, inverse, rows, columns, M: tl.constexpr, N: tl.constexpr):
    """Write bfloat16 [rows, columns], times `inverse`, in e5m2, as it is and transposed."""
    row = (tl.program_id(0) * M).to(tl.int64) + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    live = (row < rows)[:, None] & (column < columns)[None, :]
    value = tl.load(x + row[:, None] * columns + column, mask=live, other=0.0)
    value = value.to(tl.float32) * inverse
    small = _to_e5(value)
    tl.store(out + row[:, None] * columns + column, small, mask=live)
    tl.store(
        turned + column[:, None].to(tl.int64) * rows + row, tl.trans(small), mask=tl.trans(live)
    )


def add_product(x: Tensor, w: Tensor, total: Tensor, units: tuple[Tensor, Tensor]) -> None:
    """Add x [rows, inner] times w [columns, inner] transposed to bfloat16 `total`."""
    (rows, inner), columns = x.shape, total.shape[1]

    # registers and shared memory leave no room for a second program
    def programs(_: object) -> tuple[int]:
        return (min(processors(x), triton.cdiv(rows, TILE["M"]) * triton.cdiv(columns, TILE["N"])),)

    launch(
        _add_product,
        programs,
        TensorDescriptor.from_tensor(x, [TILE["M"], TILE["K"]]),
        TensorDescriptor.from_tensor(w, [TILE["N"], TILE["K"]]),
        TensorDescriptor.from_tensor(total, [TILE["M"], HALF_TILE]),
        *units,
        rows,
        columns,
        inner,
        **TILE,
        num_warps=8,
        num_stages=3,
    )


def shorten(x: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    """Return x [rows, columns] in e5m2, as it is and transposed."""
    (rows, columns), (high, wide) = x.shape, SHORTENED.values()
    out, turned = (x.new_empty(shape, dtype=E5) for shape in ((rows, columns), (columns, rows)))
    grid = triton.cdiv(rows, high), triton.cdiv(columns, wide)
    launch(_shorten, grid, x, out, turned, 1 / unit, rows, columns, **SHORTENED)
    return out, turned


@operator("mlp_fp8")
def _mlp(
    x: Tensor, y: Tensor | None, z: Tensor | None, coefficients: Tensor | None, scale: Tensor,
    up: Tensor, down: Tensor, up8: Tensor, up_turned: Tensor, up_unit: Tensor,  # noqa: ARG001
    down8: Tensor, down_turned: Tensor, down_unit: Tensor, a_unit: Tensor,  # noqa: ARG001
    slope: float, gradient_unit: float, residual: bool,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    width, wide, n_unit = x.shape[-1], up8.shape[0], input_unit(x.shape[-1])
    rows = x.numel() // width
    n8, n_turned = (x.new_empty(shape, dtype=E4) for shape in ((rows, width), (width, rows)))
    total, n, inverses = run_forward(
        _normalize_short, x, y, z, coefficients, scale, n8, n_turned, 1 / n_unit, keep=residual,
        ROWS=NORMED_ROWS, num_warps=NORMED_WARPS,
    )  # fmt: skip
    a, a_turned = (n8.new_empty(shape) for shape in ((rows, wide), (wide, rows)))
    words = hidden.sign_words(n8, wide)
    short = hidden.Short(a_turned, words, (up_unit, a_unit), n_unit)
    hidden.run(n8, up8, a, a, slope, backward=False, short=short)
    if residual:
        # u + a down^T, written over u
        sums = total.view(n8.shape)
        add_product(a, down8, sums, (a_unit, down_unit))
    else:
        total = short_product(a, down8, a_unit, down_unit, exact=False).view(n.shape)
    return total, n, inverses, n_turned, a, a_turned, words


@operator("mlp_fp8_gradients")
def _gradients(
    dy: Tensor, n_turned: Tensor, a: Tensor, a_turned: Tensor, words: Tensor, up_turned: Tensor,
    up_unit: Tensor, down_turned: Tensor, down_unit: Tensor, a_unit: Tensor, slope: float,
    gradient_unit: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of n [rows, d], up and down, bfloat16."""
    dy8, dy_turned = shorten(dy, gradient_unit)
    dz, dz_turned = (torch.empty_like(t, dtype=E5) for t in (a, a_turned))
    short = hidden.Short(dz_turned, words, (down_unit, a_unit))
    hidden.run(dy8, down_turned, a, dz, slope, backward=True, short=short)
    unit, n_unit = (
        torch.full_like(a_unit, value) for value in (gradient_unit, input_unit(dy.shape[1]))
    )
    d_n = short_product(dz, up_turned, unit, up_unit, exact=False)
    # sums over the tokens of a pass are longer than the tensor cores' accumulators are exact
    d_up = short_product(dz_turned, n_turned, unit, n_unit, exact=True)
    return d_n, d_up, short_product(dy_turned, a_turned, unit, a_unit, exact=True)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *mixed, _, _, _, up_turned, up_unit, _, down_turned, down_unit, a_unit = inputs[:14]
    ctx.slope, ctx.gradient_unit, keep = inputs[14:]
    _, n, inverses, *made = output
    ctx.mark_non_differentiable(inverses, *made)
    ctx.set_materialize_grads(False)
    saved = kept(ctx, (*mixed, keep), n, inverses)
    ctx.save_for_backward(*saved, *made, up_turned, up_unit, down_turned, down_unit, a_unit)


def _differentiate(ctx, d_out, d_n, *_):  # type: ignore[no-untyped-def]
    mixed, made = ctx.saved_tensors[:-9], ctx.saved_tensors[-9:]
    dy = d_out.reshape(-1, d_out.shape[-1]).contiguous()
    through, d_up, d_down = _gradients(dy, *made, ctx.slope, ctx.gradient_unit)
    # dn, and below what the block makes of n besides: attention in the parallel forms
    through = through.view(d_out.shape)
    if d_n is not None:
        through = through + d_n
    d_mixed = mix_backward(ctx, mixed, d_out, through)
    # in the order of _mlp's inputs: terms, coefficients, scale, up, down, and what is made of them
    return *d_mixed, None, d_up, d_down, *[None] * 10


_mlp.register_autograd(_differentiate, setup_context=_save)


def mlp(
    mix: Mix, up: Tensor, down: Tensor, slope: float, *, residual: bool, gradient_unit: float
) -> tuple[Tensor, Tensor]:
    """As fp8.mlp, for bfloat16, one to three terms, and tokens in multiples of 16."""
    # here, where the compiler joins what these do: an operator would launch each alone
    short = *shortened(up), *shortened(down), activation_unit(up, mix.scale)
    y, n, *_ = _mlp(*inputs_of(mix), up, down, *short, slope, gradient_unit, residual)
    return y, n

"""The MLP inside its matrix products, in FP8; model/fp8.py has the formulas and the units.

Hopper multiplies FP8 where both factors have the inner dimension contiguous. Gradients of weights,
whose inner dimension is tokens, so need transposed copies: what makes a tensor writes both, while
it is at hand. As in kernels/mlp.py the hidden layer is activated before it is written, and what
backward keeps is a alone; the sign of z, for which e4m3 has no bit to spare, comes beside it, in
words of 16 signs. One kernel makes a, dz and the sum of y and the residual stream, other products
are PyTorch's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from paramgolf.model.fp8 import E4, E5, activation_unit, input_unit, shortened
from paramgolf.model.kernels.launch import launch, operator
from paramgolf.model.kernels.mix_norm import inputs_of, kept, mix_backward, normalize, run_forward
from paramgolf.model.kernels.mlp import one_per_processor, tiles
from paramgolf.model.operations import Mix
from paramgolf.model.torch_internals import short_product

# As in kernels/mlp.py, with entries of half the size: steps along the inner dimension are twice as
# long. Tiles are written by halves.
TILE = {"M": 128, "N": 256, "K": 128}
HALF_TILE = TILE["N"] // 2
WORDS = HALF_TILE // 16  # of 16 signs, for a row of half a tile
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
def _words(at, row, column, rows, halves, M: tl.constexpr, HALF: tl.constexpr):
    """Return where the words [M, HALF / 16] of half a tile's signs lie, and which are inside.

    Bit i of word k is of column i HALF / 16 + k of the half.
    """
    WORDS: tl.constexpr = HALF // 16
    line = row + tl.arange(0, M)
    place = (line.to(tl.int64) * halves + column // HALF) * WORDS
    return at + place[:, None] + tl.arange(0, WORDS)[None, :], (line < rows)[:, None]


@triton.jit
def _activate(
    z, out, turned, words, row, column, rows, halves, slope, factor,
    M: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Write half a tile of a, also transposed, and its signs, of one of z."""
    positive = z > 0
    small = _to_e4(tl.where(positive, 1.0, slope * slope) * z * z * factor)
    out.store([row, column], small)
    turned.store([column, row], tl.trans(small))
    # every eighth column is of one thread, as products leave them: bits meet without a message
    bits = tl.reshape(positive.to(tl.int32), (M, 16, HALF // 16))
    word = tl.sum(bits << tl.arange(0, 16)[None, :, None], 1)
    place, inside = _words(words, row, column, rows, halves, M, HALF)
    tl.store(place, word.to(tl.int16), mask=inside)


@triton.jit
def _deactivate(
    da, a_tiles, out, turned, words, row, column, rows, halves, slope, factor,
    M: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Write half a tile of dz, also transposed, of one of da, one of a and its signs."""
    place, inside = _words(words, row, column, rows, halves, M, HALF)
    word = tl.load(place, mask=inside, other=0).to(tl.int32)
    bits = (word[:, None, :] >> tl.arange(0, 16)[None, :, None]) & 1
    positive = tl.reshape(bits, (M, HALF)) == 1
    root = tl.sqrt(a_tiles.load([row, column]).to(tl.float32))
    small = _to_e5(da * tl.where(positive, 2.0, -2.0 * slope) * root * factor)
    out.store([row, column], small)
    turned.store([column, row], tl.trans(small))


@triton.jit
def _finish(
    product, read, out, turned, words, row, column, rows, halves, slope, factor,
    STEP: tl.constexpr, M: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Write half a tile of what a step of the MLP makes of a product."""
    if STEP == "activate":
        _activate(product, out, turned, words, row, column, rows, halves, slope, factor, M, HALF)
    elif STEP == "differentiate":
        _deactivate(
            product, read, out, turned, words, row, column, rows, halves, slope, factor, M, HALF
        )
    else:
        total = read.load([row, column]).to(tl.float32) + product * factor
        out.store([row, column], total.to(tl.bfloat16))


@triton.jit
def _factor(first, second, constant, STEP: tl.constexpr):
    """Return what a sum of products of short entries is to be multiplied with, from the units."""
    a, b = tl.load(first), tl.load(second)
    if STEP == "activate":  # of up and of a: z^2 in units of a
        z = a * constant
        return z * z / b
    if STEP == "differentiate":  # of down and of a; dy and dz have one unit
        return a * tl.sqrt(b)
    return a * b  # of a and of down


@triton.jit
def _product(
    x_tiles, w_tiles, read, out, turned, words, first, second, rows, columns, inner, slope,
    constant, STEP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Take x [rows, inner] times w [columns, inner] transposed, as kernels.mlp does it."""
    factor = _factor(first, second, constant, STEP)
    across = tl.cdiv(columns, N)
    for tile in tl.range(
        tl.program_id(0), tl.cdiv(rows, M) * across, tl.num_programs(0), flatten=True
    ):
        row, column = tile // across * M, tile % across * N
        total = tl.zeros((M, N), tl.float32)
        for k in range(tl.cdiv(inner, K)):
            total = tl.dot(x_tiles.load([row, k * K]), w_tiles.load([column, k * K]).T, total)
        left, right = tl.split(tl.permute(tl.reshape(total, (M, 2, N // 2)), (0, 2, 1)))
        _finish(
            left, read, out, turned, words, row, column, rows, 2 * across, slope, factor, STEP, M,
            N // 2,
        )  # fmt: skip
        _finish(
            right, read, out, turned, words, row, column + N // 2, rows, 2 * across, slope, factor,
            STEP, M, N // 2,
        )  # fmt: skip


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


def run(
    step: str, x: Tensor, w: Tensor, read: Tensor, out: Tensor, others: tuple[Tensor, Tensor],
    units: tuple[Tensor, Tensor], numbers: tuple[float, float] = (0.0, 0.0),
) -> None:  # fmt: skip
    """Launch a step: `others` are out transposed and signs, `numbers` slope and constant."""
    (rows, inner), columns, (turned, words) = x.shape, out.shape[1], others
    launch(
        _product,
        one_per_processor(out, TILE["M"], TILE["N"]),
        tiles(x, TILE["M"], TILE["K"]),
        tiles(w, TILE["N"], TILE["K"]),
        tiles(read, TILE["M"], HALF_TILE),
        tiles(out, TILE["M"], HALF_TILE),
        tiles(turned, HALF_TILE, TILE["M"]),
        words,
        *units,
        rows,
        columns,
        inner,
        *numbers,
        STEP=step,
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


def sign_words(x: Tensor, columns: int) -> Tensor:
    """Return room for the signs of a matrix with x's rows and so many columns."""
    tiles = triton.cdiv(columns, TILE["N"])
    return x.new_empty(x.shape[0], 2 * tiles * WORDS, dtype=torch.int16)


@operator("mlp_fp8")
def _mlp(
    x: Tensor, y: Tensor | None, z: Tensor | None, coefficients: Tensor | None, scale: Tensor,
    up: Tensor, down: Tensor, up8: Tensor, up_turned: Tensor, up_unit: Tensor,  # noqa: ARG001
    down8: Tensor, down_turned: Tensor, down_unit: Tensor, a_unit: Tensor,  # noqa: ARG001
    slope: float, gradient_unit: float, residual: bool,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    width, hidden, n_unit = x.shape[-1], up8.shape[0], input_unit(x.shape[-1])
    rows = x.numel() // width
    n8, n_turned = (x.new_empty(shape, dtype=E4) for shape in ((rows, width), (width, rows)))
    total, n, inverses = run_forward(
        _normalize_short, x, y, z, coefficients, scale, n8, n_turned, 1 / n_unit, keep=residual,
        ROWS=NORMED_ROWS, num_warps=NORMED_WARPS,
    )  # fmt: skip
    a, a_turned = (n8.new_empty(shape) for shape in ((rows, hidden), (hidden, rows)))
    words = sign_words(n8, hidden)
    run("activate", n8, up8, a, a, (a_turned, words), (up_unit, a_unit), (slope, n_unit))
    if residual:
        # u + a down^T, written over u
        sums = total.view(n8.shape)
        run("add", a, down8, sums, sums, (a_turned, words), (a_unit, down_unit))
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
    units = down_unit, a_unit
    run("differentiate", dy8, down_turned, a, dz, (dz_turned, words), units, (slope, 0.0))
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

"""The MLP with LeakyReLU^2 inside its matrix products; see operations.mlp.

Forward, with n the normed input [rows, d], up [m, d], down [d, m] and l the slope:
    z = n up^T,   a = LeakyReLU(z)^2 = z^2 where z > 0, l^2 z^2 elsewhere,   y = a down^T
Backward, of the gradient dy:
    da = dy down,   dz = da * a'(z),   a'(z) = 2 z where z > 0, 2 l^2 z elsewhere
    dn = dz up,   d up = dz^T n,   d down = dy^T a

z -> a is applied before the product with `up` is written, and da -> dz before that with `down` is:
the hidden layer, four times as wide as the others, is written once each way. What backward keeps of
it is a alone, which d down needs in any case. z is not kept, as a tells all of it but its sign:
with s = sqrt(a), z = s or z = -s / l, so a'(z) = 2 s or -2 l s. The sign is put into the lowest bit
of a's mantissa, which doubles the largest error of its rounding to bfloat16, to 2^-7 of a.

One persistent kernel serves both ways; tiles come through the tensor memory accelerator (Hopper).
The sum that the residual connection adds is made here too, so that the product with `down` can add
to it in place: a sum of two tensors would be three passes over memory instead of one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from paramgolf.model.kernels.launch import launch, operator
from paramgolf.model.kernels.mix_norm import inputs_of, kept, mix_backward, mix_forward
from paramgolf.model.operations import Mix

# The accumulator of 128 x 256 float32 fills half of the processor's registers (128 of each of 256
# threads); a larger tile would spill, a smaller one loads more per product. A step of 64 along the
# inner dimension loads (128 + 256) * 64 bfloat16 = 48 KiB; three steps under way are 144 of the
# 227 KiB of shared memory. Tiles are written by halves, for which 32 KiB of the rest are enough.
TILE = {"M": 128, "N": 256, "K": 64}
HALF_TILE = TILE["N"] // 2  # columns that are written at once


@triton.jit
def _finish(product, a_tiles, out_tiles, row, column, slope, BACKWARD: tl.constexpr):
    """Write a tile [M, N / 2] of a from one of z, or of dz from one of da and one of a."""
    if BACKWARD:
        activated = a_tiles.load([row, column])
        positive = (activated.to(tl.int16, bitcast=True) & 1) == 1
        root = tl.sqrt(activated.to(tl.float32))  # s: |z|, times the slope where z < 0
        out_tiles.store(
            [row, column], (product * tl.where(positive, 2.0, -2.0 * slope) * root).to(tl.bfloat16)
        )
    else:
        positive = product > 0
        activated = tl.where(positive, 1.0, slope * slope) * product * product
        # rounding by hand, on the float's bits
        bits = activated.to(tl.int32, bitcast=True)
        # a bfloat16 is the upper half of a float32. Of those whose lowest bit is 1 (z > 0), or 0,
        # the nearest: neighbors are 2^17 apart, in units of the float32's last place
        bits = tl.where(positive, (bits >> 17 << 17) + 0x10000, (bits + 0x10000) >> 17 << 17)
        out_tiles.store([row, column], (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True))


@triton.jit
def _product(
    x_tiles, w_tiles, a_tiles, out_tiles, rows, columns, inner, slope,
    BACKWARD: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Take x [rows, inner] times w: [columns, inner] transposed, or [inner, columns] backward.

    Forward x is n, w up, and a is written to out_tiles; backward x is dy, w down, and dz is written
    there. Arguments *_tiles are descriptors of tiles. There are as many programs as processors, and
    each takes every num_programs-th tile, the next one's loads overlapping the last one's writes.
    """
    # tiles that share rows of x are neighbors, and run at one time: they find x in the cache
    across = tl.cdiv(columns, N)
    tiles = tl.cdiv(rows, M) * across
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, column = tile // across * M, tile % across * N
        # float32 sums of products of bfloat16, as the tensor cores make them
        total = tl.zeros((M, N), tl.float32)
        for k in range(tl.cdiv(inner, K)):
            x = x_tiles.load([row, k * K])
            if BACKWARD:
                total = tl.dot(x, w_tiles.load([k * K, column]), total)
            else:
                total = tl.dot(x, w_tiles.load([column, k * K]).T, total)
        # columns n and n + N / 2 side by side, so that split tells the halves of the tile apart
        left, right = tl.split(tl.permute(tl.reshape(total, (M, 2, N // 2)), (0, 2, 1)))
        _finish(left, a_tiles, out_tiles, row, column, slope, BACKWARD)
        _finish(right, a_tiles, out_tiles, row, column + N // 2, slope, BACKWARD)


def tiles(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Return a matrix as kernels read and write it, by tiles of so many rows and columns."""
    return TensorDescriptor.from_tensor(matrix, [rows, columns])


def one_per_processor(out: Tensor, high: int, wide: int) -> Callable[[object], tuple[int]]:
    """Return the grid of a persistent kernel that writes `out` in tiles [high, wide]."""

    # registers and shared memory leave no room for a second program
    def programs(_: object) -> tuple[int]:
        processors = torch.cuda.get_device_properties(out.device).multi_processor_count
        rows, columns = out.shape
        return (min(processors, triton.cdiv(rows, high) * triton.cdiv(columns, wide)),)

    return programs


def _run(
    x: Tensor, w: Tensor, activated: Tensor, out: Tensor, slope: float, *, backward: bool
) -> None:
    rows, inner = x.shape
    columns = out.shape[1]
    w_tile = (TILE["K"], TILE["N"]) if backward else (TILE["N"], TILE["K"])
    launch(
        _product,
        one_per_processor(out, TILE["M"], TILE["N"]),
        tiles(x, TILE["M"], TILE["K"]),
        tiles(w, *w_tile),
        tiles(activated, TILE["M"], HALF_TILE),
        tiles(out, TILE["M"], HALF_TILE),
        rows,
        columns,
        inner,
        slope,
        BACKWARD=backward,
        **TILE,
        num_warps=8,
        num_stages=3,
    )


@operator("mlp")
def _mlp(
    x: Tensor, y: Tensor | None, z: Tensor | None, coefficients: Tensor | None, scale: Tensor,
    up: Tensor, down: Tensor, slope: float, residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    total, n, inverses = mix_forward(x, y, z, coefficients, scale, residual)
    flat = n.view(-1, n.shape[-1])
    activated = flat.new_empty(flat.shape[0], len(up))  # not len: it may be a symbol
    _run(flat, up, activated, activated, slope, backward=False)
    if residual:
        # u + a down^T, written over u
        total.view(flat.shape).addmm_(activated, down.T)
    else:
        total = F.linear(activated, down).view(n.shape)
    return total, n, activated, inverses


@operator("mlp_hidden_gradient")
def _hidden_gradient(dy: Tensor, down: Tensor, activated: Tensor, slope: float) -> Tensor:
    dz = torch.empty_like(activated)
    _run(dy, down, activated, dz, slope, backward=True)
    return dz


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *mixed, up, down, ctx.slope, keep = inputs
    _, n, activated, inverses = output
    ctx.mark_non_differentiable(activated, inverses)
    ctx.set_materialize_grads(False)
    saved = kept(ctx, (*mixed, keep), n, inverses)
    ctx.save_for_backward(*saved, up, down, n, activated)


def _differentiate(ctx, d_out, d_n, *_):  # type: ignore[no-untyped-def]
    *mixed, up, down, n, activated = ctx.saved_tensors
    dy, flat = (t.reshape(-1, t.shape[-1]) for t in (d_out, n))
    dz = _hidden_gradient(dy, down, activated, ctx.slope)
    # dn, and below what the block makes of n besides: attention in the parallel forms
    through = (dz @ up).view(n.shape)
    if d_n is not None:
        through = through + d_n
    d_mixed = mix_backward(ctx, mixed, d_out, through)
    # in the order of _mlp's inputs: terms, coefficients, scale, up, down, slope, residual
    return *d_mixed, None, dz.T @ flat, dy.T @ activated, None, None


_mlp.register_autograd(_differentiate, setup_context=_save)


def mlp(
    mix: Mix, up: Tensor, down: Tensor, slope: float, *, residual: bool
) -> tuple[Tensor, Tensor]:
    """As operations.mlp, for bfloat16 and one to three terms."""
    y, n, *_ = _mlp(*inputs_of(mix), up, down, slope, residual)
    return y, n

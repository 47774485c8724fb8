"""The MLP with LeakyReLU^2 inside its matrix products; see operations.mlp.

Forward, the product with `up` is written as the activation at once; backward, the product with
`down` is multiplied by the activation's derivative before it is written. What backward keeps of the
hidden layer is the activation alone, which the gradient of `down` needs in any case: it is z^2 or
slope^2 z^2, so its root tells |z|, and its lowest bit, one of eight, is made the sign of z. One
persistent kernel serves both ways; tiles come through the tensor memory accelerator (Hopper).

The sum that the residual connection adds is made here too, so that the product with `down` can add
to it in place: a sum of two tensors would be three passes over memory instead of one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from paramgolf.model.kernels.launch import launch, operator
from paramgolf.model.kernels.mix_norm import kept, mix_backward, mix_forward, three

TILE = {"M": 128, "N": 256, "K": 64}
HALF_TILE = TILE["N"] // 2  # columns that are written at once


@triton.jit
def _finish(product, a_tiles, out_tiles, row, column, slope, BACKWARD: tl.constexpr):
    """Write a tile: the activation of z, or the gradient times the activation's derivative."""
    if BACKWARD:
        activated = a_tiles.load([row, column])
        positive = (activated.to(tl.int16, bitcast=True) & 1) == 1
        root = tl.sqrt(activated.to(tl.float32))  # |z|, times slope below 0
        out_tiles.store(
            [row, column], (product * tl.where(positive, 2.0, -2.0 * slope) * root).to(tl.bfloat16)
        )
    else:
        positive = product > 0
        activated = tl.where(positive, 1.0, slope * slope) * product * product
        bits = activated.to(tl.int32, bitcast=True)
        # the nearest bfloat16 (16 bits less) among those whose lowest bit is the sign
        bits = tl.where(positive, (bits >> 17 << 17) + 0x10000, (bits + 0x10000) >> 17 << 17)
        out_tiles.store([row, column], (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True))


@triton.jit
def _product(
    x_tiles, w_tiles, a_tiles, out_tiles, rows, columns, inner, slope,
    BACKWARD: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Take x [rows, inner] times w: [columns, inner] transposed, or [inner, columns] backward."""
    across = tl.cdiv(columns, N)
    tiles = tl.cdiv(rows, M) * across
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, column = tile // across * M, tile % across * N
        total = tl.zeros((M, N), tl.float32)
        for step in range(tl.cdiv(inner, K)):
            x = x_tiles.load([row, step * K])
            if BACKWARD:
                total = tl.dot(x, w_tiles.load([step * K, column]), total)
            else:
                total = tl.dot(x, w_tiles.load([column, step * K]).T, total)
        left, right = tl.split(tl.permute(tl.reshape(total, (M, 2, N // 2)), (0, 2, 1)))
        _finish(left, a_tiles, out_tiles, row, column, slope, BACKWARD)
        _finish(right, a_tiles, out_tiles, row, column + N // 2, slope, BACKWARD)


def _tiles(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(matrix, [rows, columns])


def _run(
    x: Tensor, w: Tensor, activated: Tensor, out: Tensor, slope: float, *, backward: bool
) -> None:
    rows, inner = x.shape
    columns = out.shape[1]
    w_tile = (TILE["K"], TILE["N"]) if backward else (TILE["N"], TILE["K"])

    def programs(_: object) -> tuple[int]:
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count
        return (min(processors, triton.cdiv(rows, TILE["M"]) * triton.cdiv(columns, TILE["N"])),)

    launch(
        _product,
        programs,
        _tiles(x, TILE["M"], TILE["K"]),
        _tiles(w, *w_tile),
        _tiles(activated, TILE["M"], HALF_TILE),
        _tiles(out, TILE["M"], HALF_TILE),
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
    through = (dz @ up).view(n.shape)
    if d_n is not None:
        through = through + d_n
    d_mixed = mix_backward(ctx, mixed, d_out, through)
    return *d_mixed, None, dz.T @ flat, dy.T @ activated, None, None


_mlp.register_autograd(_differentiate, setup_context=_save)


def mlp(
    terms: tuple[Tensor, ...],
    coefficients: Tensor | None,
    scale: Tensor,
    up: Tensor,
    down: Tensor,
    slope: float,
    *,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    """As operations.mlp, for bfloat16 and one to three terms."""
    found = _mlp(*three(terms), coefficients, scale, up, down, slope, residual)
    return found[0], found[1]

"""The MLP with LeakyReLU^2 inside its matrix products; see operations.mlp.

Forward, the product with `up` is written as the activation at once; backward, the product with
`down` is multiplied by the activation's derivative before it is written. What backward keeps of the
hidden layer is the activation alone, which the gradient of `down` needs in any case: it is z^2 or
slope^2 z^2, so its root tells |z|, and its lowest bit, one of eight, is made the sign of z. One
persistent kernel serves both ways; tiles come through the tensor memory accelerator (Hopper).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

TILE = {"M": 128, "N": 256, "K": 64}
HALF_TILE = TILE["N"] // 2  # columns that are written at once
MULTIPLE = 8  # of a row's elements: the accelerator wants 16 bytes


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
    tiles = triton.cdiv(rows, TILE["M"]) * triton.cdiv(columns, TILE["N"])
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    _product[(min(processors, tiles),)](
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


@torch.library.custom_op("paramgolf::mlp", mutates_args=())
def _mlp(n: Tensor, up: Tensor, down: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    flat = n.view(-1, n.shape[-1])
    activated = flat.new_empty(len(flat), len(up))
    _run(flat, up, activated, activated, slope, backward=False)
    return F.linear(activated, down).view(*n.shape[:-1], len(down)), activated


@_mlp.register_fake
def _(n, up, down, slope):  # type: ignore[no-untyped-def]
    rows = n.numel() // n.shape[-1]
    return n.new_empty(*n.shape[:-1], len(down)), n.new_empty(rows, len(up))


@torch.library.custom_op("paramgolf::mlp_hidden_gradient", mutates_args=())
def _hidden_gradient(dy: Tensor, down: Tensor, activated: Tensor, slope: float) -> Tensor:
    dz = torch.empty_like(activated)
    _run(dy, down, activated, dz, slope, backward=True)
    return dz


@_hidden_gradient.register_fake
def _(dy, down, activated, slope):  # type: ignore[no-untyped-def]
    return torch.empty_like(activated)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    n, up, down, ctx.slope = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(n, up, down, output[1])


def _differentiate(ctx, dy, _):  # type: ignore[no-untyped-def]
    n, up, down, activated = ctx.saved_tensors
    dy = dy.reshape(-1, dy.shape[-1])
    dz = _hidden_gradient(dy, down, activated, ctx.slope)
    flat = n.reshape(-1, n.shape[-1])
    return (dz @ up).view(n.shape), dz.T @ flat, dy.T @ activated, None


_mlp.register_autograd(_differentiate, setup_context=_save)


def mlp(n: Tensor, up: Tensor, down: Tensor, slope: float) -> Tensor:
    """As operations.mlp, for bfloat16."""
    y: Tensor = _mlp(n.contiguous(), up, down, slope)[0]
    return y

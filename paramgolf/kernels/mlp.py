"""The MLP with LeakyReLU^2 inside its matrix products; see operations.mlp.

Forward, the product with `up` writes its result and the activation at once; backward, the product
with `down` is multiplied by the activation's derivative before it is written. One persistent
kernel serves both; tiles come through the tensor memory accelerator (Hopper).
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
def _finish(
    product, z_tiles, out_tiles, row, column, slope,
    BACKWARD: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Write a tile: z and slope-leaky(z)^2, or the product times the derivative at z."""
    dtype: tl.constexpr = out_tiles.dtype
    if BACKWARD:
        z = z_tiles.load([row, column]).to(tl.float32)
        result = product * tl.where(z > 0, 2 * z, 2 * slope * slope * z)
    else:
        z = product.to(dtype)
        if KEEP:
            z_tiles.store([row, column], z)
        z = z.to(tl.float32)
        result = tl.where(z > 0, 1.0, slope * slope) * z * z
    out_tiles.store([row, column], result.to(dtype))


@triton.jit
def _product(
    a_tiles, b_tiles, z_tiles, out_tiles, rows, columns, inner, slope,
    BACKWARD: tl.constexpr, KEEP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """A [rows, inner] times B: [columns, inner] transposed forward, [inner, columns] backward."""
    across = tl.cdiv(columns, N)
    tiles = tl.cdiv(rows, M) * across
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, column = tile // across * M, tile % across * N
        total = tl.zeros((M, N), tl.float32)
        for step in range(tl.cdiv(inner, K)):
            a = a_tiles.load([row, step * K])
            if BACKWARD:
                total = tl.dot(a, b_tiles.load([step * K, column]), total)
            else:
                total = tl.dot(a, b_tiles.load([column, step * K]).T, total)
        left, right = tl.split(tl.permute(tl.reshape(total, (M, 2, N // 2)), (0, 2, 1)))
        _finish(left, z_tiles, out_tiles, row, column, slope, BACKWARD, KEEP)
        _finish(right, z_tiles, out_tiles, row, column + N // 2, slope, BACKWARD, KEEP)


def _tiles(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(matrix, [rows, columns])


def _run(a: Tensor, b: Tensor, z: Tensor, out: Tensor, slope: float, *, backward: bool, keep: bool) -> None:  # fmt: skip
    rows, inner = a.shape
    columns = out.shape[1]
    b_tile = (TILE["K"], TILE["N"]) if backward else (TILE["N"], TILE["K"])
    tiles = triton.cdiv(rows, TILE["M"]) * triton.cdiv(columns, TILE["N"])
    _product[(min(_processors(a), tiles),)](
        _tiles(a, TILE["M"], TILE["K"]),
        _tiles(b, *b_tile),
        _tiles(z, TILE["M"], HALF_TILE),
        _tiles(out, TILE["M"], HALF_TILE),
        rows,
        columns,
        inner,
        slope,
        BACKWARD=backward,
        KEEP=keep,
        **TILE,
        num_warps=8,
        num_stages=3,
    )


def _processors(x: Tensor) -> int:
    if x.device.type != "cuda":
        return 4  # Triton's interpreter
    return torch.cuda.get_device_properties(x.device).multi_processor_count


@torch.library.custom_op("paramgolf::mlp", mutates_args=())
def _mlp(
    n: Tensor, up: Tensor, down: Tensor, slope: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    flat = n.view(-1, n.shape[-1])
    activated = flat.new_empty(len(flat), len(up))
    z = torch.empty_like(activated) if keep else activated
    _run(flat, up, z, activated, slope, backward=False, keep=keep)
    y = F.linear(activated, down).view(*n.shape[:-1], len(down))
    empty = n.new_empty(0)
    return (y, z, activated) if keep else (y, empty, empty.clone())


@_mlp.register_fake
def _(n, up, down, slope, keep):  # type: ignore[no-untyped-def]
    hidden = (n.numel() // n.shape[-1], len(up)) if keep else (0,)
    y = n.new_empty(*n.shape[:-1], len(down))
    return y, n.new_empty(hidden), n.new_empty(hidden)


@torch.library.custom_op("paramgolf::mlp_hidden_gradient", mutates_args=())
def _hidden_gradient(dy: Tensor, down: Tensor, z: Tensor, slope: float) -> Tensor:
    dz = torch.empty_like(z)
    _run(dy, down, z, dz, slope, backward=True, keep=False)
    return dz


@_hidden_gradient.register_fake
def _(dy, down, z, slope):  # type: ignore[no-untyped-def]
    return torch.empty_like(z)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    n, up, down, ctx.slope, _ = inputs
    _, z, activated = output
    ctx.mark_non_differentiable(z, activated)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(n, up, down, z, activated)


def _differentiate(ctx, dy, _dz, _da):  # type: ignore[no-untyped-def]
    n, up, down, z, activated = ctx.saved_tensors
    dy = dy.reshape(-1, dy.shape[-1])
    dz = _hidden_gradient(dy, down, z, ctx.slope)
    flat = n.reshape(-1, n.shape[-1])
    return (dz @ up).view(n.shape), dz.T @ flat, dy.T @ activated, None, None


_mlp.register_autograd(_differentiate, setup_context=_save)


def mlp(n: Tensor, up: Tensor, down: Tensor, slope: float) -> Tensor:
    """As operations.mlp."""
    y: Tensor = _mlp(n.contiguous(), up, down, slope, torch.is_grad_enabled())[0]
    return y

"""The MLP of pr1493 in FP8, a sketch on one GPU: `python benchmarks/fp8.py`.

Milliseconds of a layer's products, forward and backward, for 98,304 tokens: in bfloat16, as the
kernels of the network do them, and with weights, inputs and activations in e4m3 and gradients in
e5m2. Hopper multiplies FP8 where both factors have the inner dimension contiguous. Gradients of
weights, whose inner dimension is tokens, so need transposed copies: what makes a tensor here writes
both. Scales are those of an earlier step, so constants. Left out are the sign of z, of which the
kernel in bfloat16 keeps a bit, the largest entries for the next scales, and the weights' own pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import triton
import triton.language as tl
from tables import Row, device_name, write_results
from torch import Tensor
from triton.testing import do_bench
from triton.tools.tensor_descriptor import TensorDescriptor

from paramgolf.model.kernels import mlp

ROWS, WIDTH, HIDDEN, SLOPE = 98_304, 512, 2048, 0.5
E4, E5 = torch.float8_e4m3fn, torch.float8_e5m2
TILE = {"M": 128, "N": 256, "K": 128}
HALF = TILE["N"] // 2
WARM_UP, REPEAT = 100, 300  # milliseconds
Works = Mapping[str, Callable[[], object]]


@triton.jit
def _finish(product, a_tiles, out, turned, row, column, slope, BACKWARD: tl.constexpr):
    """Write a tile of a, from one of z, or of dz, from one of da and one of a; and transposed."""
    if BACKWARD:
        small = (2.0 * product * tl.sqrt(a_tiles.load([row, column]).to(tl.float32))).to(
            tl.float8e5
        )
    else:
        activated = tl.where(product > 0, 1.0, slope * slope) * product * product
        small = tl.minimum(activated, 448.0).to(tl.float8e4nv)  # the largest there is
    out.store([row, column], small)
    turned.store([column, row], tl.trans(small))


@triton.jit
def _product(
    x_tiles, w_tiles, a_tiles, out, turned, rows, columns, inner, slope,
    BACKWARD: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Take x [rows, inner] times w [columns, inner] transposed, as kernels.mlp does it."""
    across = tl.cdiv(columns, N)
    for tile in tl.range(
        tl.program_id(0), tl.cdiv(rows, M) * across, tl.num_programs(0), flatten=True
    ):
        row, column = tile // across * M, tile % across * N
        total = tl.zeros((M, N), tl.float32)
        for k in range(tl.cdiv(inner, K)):
            total = tl.dot(x_tiles.load([row, k * K]), w_tiles.load([column, k * K]).T, total)
        left, right = tl.split(tl.permute(tl.reshape(total, (M, 2, N // 2)), (0, 2, 1)))
        _finish(left, a_tiles, out, turned, row, column, slope, BACKWARD)
        _finish(right, a_tiles, out, turned, row, column + N // 2, slope, BACKWARD)


@triton.jit
def _shorten(
    x, out, turned, rows, columns, GRADIENT: tl.constexpr, M: tl.constexpr, N: tl.constexpr
):
    """Write bfloat16 [rows, columns] in FP8, as it is and transposed."""
    row = (tl.program_id(0) * M).to(tl.int64) + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    value = tl.load(x + row[:, None] * columns + column)
    small = value.to(tl.float8e5 if GRADIENT else tl.float8e4nv)
    tl.store(out + row[:, None] * columns + column, small)
    tl.store(turned + column[:, None].to(tl.int64) * rows + row, tl.trans(small))


def product(
    x: Tensor, w: Tensor, a: Tensor, out: Tensor, turned: Tensor, *, backward: bool
) -> None:
    """Write a or dz, and its transpose."""

    def tiles(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
        return TensorDescriptor.from_tensor(matrix, [rows, columns])

    (rows, inner), columns = x.shape, out.shape[1]
    _product[(torch.cuda.get_device_properties(x.device).multi_processor_count,)](
        tiles(x, TILE["M"], TILE["K"]),
        tiles(w, TILE["N"], TILE["K"]),
        tiles(a, TILE["M"], HALF),
        tiles(out, TILE["M"], HALF),
        tiles(turned, HALF, TILE["M"]),
        rows,
        columns,
        inner,
        SLOPE,
        BACKWARD=backward,
        **TILE,
        num_warps=8,
        num_stages=3,
    )


def shorten(x: Tensor, out: Tensor, turned: Tensor) -> None:
    """Write x in FP8, as it is and transposed."""
    rows, columns = x.shape
    gradient = out.dtype == E5
    _shorten[(rows // 128, columns // 64)](x, out, turned, rows, columns, gradient, 128, 64)


def in_bfloat16(x: Tensor, dy: Tensor, up: Tensor, down: Tensor) -> Works:
    """Return the products of a layer, by what they make."""
    a, dz = (x.new_empty(len(x), HIDDEN) for _ in range(2))
    y = torch.randn_like(x)
    return {
        "a": lambda: mlp._run(x, up, a, a, SLOPE, backward=False),
        "y": lambda: y.addmm_(a, down.T),
        "dz": lambda: mlp._run(dy, down, a, dz, SLOPE, backward=True),
        "dn": lambda: dz @ up,
        "d up": lambda: dz.T @ x,
        "d down": lambda: dy.T @ a,
    }


def in_fp8(x: Tensor, dy: Tensor, up: Tensor, down: Tensor) -> Works:
    """Return the same, and what shortens n and dy."""
    one = torch.ones((), device=x.device)

    def pair(columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        whole = torch.empty(len(x), columns, dtype=dtype, device=x.device)
        return whole, torch.empty_like(whole.T, memory_format=torch.contiguous_format)

    def times(a: Tensor, b: Tensor) -> Tensor:  # a b^T
        return torch._scaled_mm(a, b.T, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)

    n, dn, (a, a_turned), (dz, dz_turned) = (
        *(pair(WIDTH, dtype) for dtype in (E4, E5)),
        pair(HIDDEN, E4),
        pair(HIDDEN, E5),
    )
    up8, up_turned, down8, down_turned = (w.contiguous().to(E4) for w in (up, up.T, down, down.T))
    return {
        "n": lambda: shorten(x, *n),
        "dy": lambda: shorten(dy, *dn),
        "a": lambda: product(n[0], up8, a, a, a_turned, backward=False),
        "y": lambda: times(a, down8),
        "dz": lambda: product(dn[0], down_turned, a, dz, dz_turned, backward=True),
        "dn": lambda: times(dz, up_turned),
        "d up": lambda: times(dz_turned, n[1]),
        "d down": lambda: times(dn[1], a_turned),
    }


def main() -> None:
    def random(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)

    x, dy = random(ROWS, WIDTH), random(ROWS, WIDTH)
    weights = random(HIDDEN, WIDTH) / WIDTH**0.5, random(WIDTH, HIDDEN) / HIDDEN**0.5
    long, short = (
        {
            name: do_bench(work, WARM_UP, REPEAT, return_mode="median")
            for name, work in works.items()
        }
        for works in (in_bfloat16(x, dy, *weights), in_fp8(x, dy, *weights))
    )
    short |= {"all": sum(short.values())}
    long |= {"all": sum(long.values())}
    them = f"a layer's MLP in FP8, {ROWS:,} tokens, {device_name()}"
    rows = [
        Row(f"{them}: {name}; reference: bfloat16", value, "ms", long.get(name), None, "lower")
        for name, value in short.items()
    ]
    write_results("train_speed", rows, "python benchmarks/fp8.py")


if __name__ == "__main__":
    main()

"""The products that make the MLP's hidden layer, both ways, with what is done to it before writing.

Forward a = LeakyReLU(x w^T)^2 is made of x and w, backward dz = (x w) a'(z) of x, w and a; see
kernels/mlp.py for the formulas in bfloat16, where the sign of z is the lowest bit of a's mantissa,
and model/fp8.py for those in FP8. There the result is written a second time, transposed, and the
signs come beside a, in words of 32 bits.

Here a product takes hardly longer than its writes, so that one must hide the other, for which
Triton's own language has no means on Hopper: this is Gluon, the language beneath it, in which each
warp is told what it does. A program keeps its columns of w in shared memory all the time, and goes
through the rows of x. One warp loads those. Two groups of four warps take turns at the tensor
cores: while one multiplies, the other one works on its last tile and writes it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from paramgolf.model.kernels.launch import launch, processors

# Triton 3.9 has renamed both
load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
store_tile = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global

# A processor has 227 KiB of shared memory: 128 are for w, 48 or 64 for x on its way, and the rest
# is for results. Tensor cores take 64 rows at a time. The result of 64 x 256 is 128 registers of
# each thread of a group, half of what it can have.
SLAB = 128 * 1024  # bytes
ROWS, MOST_COLUMNS = 64, 256  # of FP8; half in bfloat16
PART = 128  # columns that are worked on and written at once
# Numbers of the inner dimension that are loaded together: 256 bytes, or 128 in bfloat16, which
# loads x 16 times and so is limited by how soon its places in the ring are free again.
SHORT_STEP, STEP = 256, 64
# of a thread of the groups, and of the loading warp: all 65,536 registers are given out
GROUP_REGISTERS, LOAD_REGISTERS = gl.constexpr(232), gl.constexpr(40)
TYPES = {
    torch.bfloat16: gl.bfloat16,
    torch.float8_e4m3fn: gl.float8e4nv,
    torch.float8_e5m2: gl.float8e5,
}


class Short(NamedTuple):
    """What FP8 has besides.

    turned: room for the result, transposed. signs: those of z, written forward and read backward.
    units: of `up` and of a forward, of `down` and of a backward; x_unit: of x, forward.
    """

    turned: Tensor
    signs: Tensor
    units: tuple[Tensor, Tensor]
    x_unit: float = 1.0


@gluon.jit
def _as_words(x):
    """Shape x [M, W] as [M, 4, W / 4], by the four threads that have a row after a product."""
    M: gl.constexpr = x.shape[0]
    W: gl.constexpr = x.shape[1]
    # of each eight columns a thread has two: bits of a word meet without a message
    parted = gl.permute(gl.reshape(x, (M, W // 8, 4, 2)), (0, 2, 1, 3))
    return gl.reshape(parted, (M, 4, W // 4))


@gluon.jit
def _words(signs, row, part, rows, parts, M: gl.constexpr, WORD: gl.constexpr):
    """Return where the words [M, 4] of a part's signs lie, and which are inside."""
    line = row + gl.arange(0, M, gl.SliceLayout(1, WORD))
    word = gl.arange(0, 4, gl.SliceLayout(0, WORD))
    place = (line.to(gl.int64) * parts + part) * 4
    return signs + place[:, None] + word[None, :], ((line < rows)[:, None]) & (word < 4)[None, :]


@gluon.jit
def _bits(WORDS: gl.constexpr, COUNT: gl.constexpr):
    """Return 1 << i for the bits of words, ready to be combined with them."""
    at = gl.arange(0, COUNT, gl.SliceLayout(0, gl.SliceLayout(1, WORDS)))
    return (gl.full_like(at, 1) << at)[None, None, :]


@gluon.jit
def _read_signs(
    signs, row, part, rows, parts, M: gl.constexpr, W: gl.constexpr, LAYOUT: gl.constexpr
):  # fmt: skip
    """Return the words [M, 4] of a part [M, W]."""
    shaped = _as_words(gl.zeros((M, W), gl.int32, LAYOUT))
    SHAPED: gl.constexpr = shaped.type.layout
    WORD: gl.constexpr = gl.SliceLayout(2, SHAPED)
    place, inside = _words(signs, row, part, rows, parts, M, WORD)
    return gl.load(place, mask=inside, other=0)


@gluon.jit
def _write_signs(z, signs, row, part, rows, parts):
    """Write the signs of a part of z."""
    positive = _as_words((z > 0).to(gl.int32))
    SHAPED: gl.constexpr = positive.type.layout
    words = gl.sum(positive * _bits(SHAPED, positive.shape[2]), 2)
    WORD: gl.constexpr = words.type.layout
    place, inside = _words(signs, row, part, rows, parts, z.shape[0], WORD)
    gl.store(place, words, mask=inside)


@gluon.jit
def _activate(z, slope, factor, SHORT: gl.constexpr):
    """Return a part of a."""
    positive = z > 0
    if SHORT:  # the conversion makes what is beyond e4m3 its largest number
        a = (z * z * gl.where(positive, factor, slope * slope * factor)).to(gl.float8e4nv)
    else:
        # Rounding by hand, on the float's bits. A bfloat16 is the upper half of a float32. Of those
        # whose lowest bit is 1 (z > 0), or 0, the nearest: neighbors are 2^17 apart, in units of
        # the float32's last place.
        bits = (gl.where(positive, 1.0, slope * slope) * z * z).to(gl.int32, bitcast=True)
        bits = gl.where(positive, (bits >> 17 << 17) + 0x10000, (bits + 0x10000) >> 17 << 17)
        a = (bits >> 16).to(gl.int16).to(gl.bfloat16, bitcast=True)
    return a


@gluon.jit
def _differentiate(da, activated, words, slope, factor, SHORT: gl.constexpr):
    """Return a part of dz; a is in the place where dz will be, and FP8 of dz's type."""
    LAYOUT: gl.constexpr = da.type.layout
    if SHORT:
        M: gl.constexpr = da.shape[0]
        W: gl.constexpr = da.shape[1]
        SHAPED: gl.constexpr = words.type.layout.parent
        bits = gl.reshape(words[:, :, None] & _bits(SHAPED, W // 4), (M, 4, W // 8, 2))
        bits = gl.reshape(gl.permute(bits, (0, 2, 1, 3)), (M, W))
        positive = gl.convert_layout(bits, LAYOUT, assert_trivial=True) != 0
        a = activated.load(LAYOUT).to(gl.float8e4nv, bitcast=True)
    else:
        a = activated.load(LAYOUT)
        positive = (a.to(gl.int16, bitcast=True) & 1) == 1
    root = gl.sqrt(a.to(gl.float32))  # |z|, times the slope where z < 0
    dz = da * root * gl.where(positive, 2.0 * factor, -2.0 * slope * factor)
    return dz.to(gl.float8e5 if SHORT else gl.bfloat16)


@gluon.jit
def _load(
    x_tiles, w_tiles, room, rows, STEPS: gl.constexpr, STAGES: gl.constexpr, W_TURNED: gl.constexpr
):  # fmt: skip
    """Load the program's columns of w, then the rows of x, in `STAGES` places that come round."""
    x_ring, w_slab, filled, emptied, loaded, _ = room
    M: gl.constexpr = x_tiles.block_shape[0]
    K: gl.constexpr = x_tiles.block_shape[1]
    column = gl.program_id(1) * w_tiles.block_shape[1 if W_TURNED else 0]
    mbarrier.expect(loaded, STEPS * w_tiles.block_type.nbytes)
    for k in gl.static_range(STEPS):
        at = [k * K, column] if W_TURNED else [column, k * K]
        load_tile(w_tiles, at, loaded, w_slab.index(k))
    program, programs = gl.program_id(0), gl.num_programs(0)
    for order in range(gl.cdiv(gl.cdiv(rows, M) - program, programs)):
        row = (program + order * programs) * M
        for k in gl.static_range(STEPS):
            step = order * STEPS + k
            stage = step % STAGES
            mbarrier.wait(emptied.index(stage), (step // STAGES & 1) ^ 1)
            arrival = filled.index(stage)
            mbarrier.expect(arrival, x_tiles.block_type.nbytes)
            load_tile(x_tiles, [row, k * K], arrival, x_ring.index(stage))


@gluon.jit
def _multiply(
    room, order, odd, GROUP: gl.constexpr, STEPS: gl.constexpr, STAGES: gl.constexpr,
    W_TURNED: gl.constexpr, M: gl.constexpr, N: gl.constexpr, WHOLE: gl.constexpr,
):  # fmt: skip
    """Return the product [M, N] of the program's `order`-th tile, when it is this group's turn."""
    x_ring, w_slab, filled, emptied, _, turn = room
    # That groups take turns also keeps their places in the ring apart: whoever waits for a
    # barrier's next phase must have seen the one before.
    mbarrier.wait(turn.index(GROUP), odd ^ (1 - GROUP))
    total = warpgroup_mma_init(gl.zeros((M, N), gl.float32, WHOLE))
    for k in gl.static_range(STEPS):
        step = order * STEPS + k
        mbarrier.wait(filled.index(step % STAGES), step // STAGES & 1)
        w = w_slab.index(k)
        if not W_TURNED:
            w = w.permute((1, 0))
        x = x_ring.index(step % STAGES)
        total = warpgroup_mma(x, w, total, use_acc=k > 0, is_async=True)
        if k > 0:
            total = warpgroup_mma_wait(1, deps=(total,))
            mbarrier.arrive(emptied.index((step - 1) % STAGES))
    mbarrier.arrive(turn.index(1 - GROUP))
    product = warpgroup_mma_wait(0, deps=(total,))
    mbarrier.arrive(emptied.index((order * STEPS + STEPS - 1) % STAGES))
    return product


@gluon.jit
def _write(
    result, out_tiles, turned_tiles, row, column, place, turned_place, SHORT: gl.constexpr
):  # fmt: skip
    """Begin to write a part of the result by way of its places in shared memory."""
    place.store(result)
    if SHORT:
        turned_place.permute((1, 0)).store(result)
    fence_async_shared()
    store_tile(out_tiles, [row, column], place)
    if SHORT:
        store_tile(turned_tiles, [column, row], turned_place)


@gluon.jit
def _make(
    x_tiles, w_tiles, read_tiles, out_tiles, turned_tiles, signs, room, held, turned, read, rows,
    slope, factor, GROUP: gl.constexpr, STEPS: gl.constexpr, STAGES: gl.constexpr,
    W_TURNED: gl.constexpr, SHORT: gl.constexpr, BACKWARD: gl.constexpr,
):  # fmt: skip
    """Make every second tile of the program: those of group 0, or of group 1."""
    M: gl.constexpr = x_tiles.block_shape[0]
    N: gl.constexpr = w_tiles.block_shape[1 if W_TURNED else 0]
    W: gl.constexpr = out_tiles.block_shape[1]
    PARTS: gl.constexpr = N // W
    HELD: gl.constexpr = PARTS if BACKWARD else 1
    DEPTH: gl.constexpr = 256 // x_tiles.dtype.primitive_bitwidth
    WHOLE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, DEPTH])
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, W, DEPTH])
    column = gl.program_id(1) * N
    part, parts = gl.program_id(1) * PARTS, gl.num_programs(1) * PARTS
    program, programs = gl.program_id(0), gl.num_programs(0)
    _, _, _, _, loaded, _ = room
    mbarrier.wait(loaded, 0)
    for order in range(GROUP, gl.cdiv(gl.cdiv(rows, M) - program, programs), 2):
        row = (program + order * programs) * M
        odd = order // 2 & 1  # whether the group has made an odd number of tiles
        words = (0, 0)
        if BACKWARD:
            # what is read comes while this group waits and multiplies
            tma.store_wait(0)
            mbarrier.expect(read, PARTS * read_tiles.block_type.nbytes)
            for i in gl.static_range(PARTS):
                place = held.index(GROUP * HELD + i)
                load_tile(read_tiles, [row, column + i * W], read, place)
            if SHORT:
                first = _read_signs(signs, row, part, rows, parts, M, W, LAYOUT)
                last = first
                if PARTS == 2:
                    last = _read_signs(signs, row, part + 1, rows, parts, M, W, LAYOUT)
                words = (first, last)
        product = _multiply(room, order, odd, GROUP, STEPS, STAGES, W_TURNED, M, N, WHOLE)
        if BACKWARD:
            mbarrier.wait(read, odd)
        # columns n and n + N / 2 side by side, so that split tells the halves of the tile apart
        halves = (product,)
        if PARTS == 2:
            halves = gl.split(gl.permute(gl.reshape(product, (M, 2, W)), (0, 2, 1)))
        for i in gl.static_range(PARTS):
            half = gl.convert_layout(halves[i], LAYOUT, assert_trivial=True)
            place, at = held.index(GROUP * HELD + i % HELD), column + i * W
            if BACKWARD:
                result = _differentiate(half, place, words[i], slope, factor, SHORT)
            else:
                result = _activate(half, slope, factor, SHORT)
                if SHORT:
                    _write_signs(half, signs, row, part + i, rows, parts)
            tma.store_wait(0)  # what these places held before has been written
            _write(result, out_tiles, turned_tiles, row, at, place, turned.index(GROUP), SHORT)
    tma.store_wait(0)


@gluon.jit
def _barriers(COUNT: gl.constexpr):
    """Return barriers of one arrival."""
    made = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(made.index(i), count=1)
    return made


@gluon.jit
def _hidden_product(
    x_tiles, w_tiles, read_tiles, out_tiles, turned_tiles, signs, first_unit, second_unit, x_unit,
    rows, slope, STEPS: gl.constexpr, STAGES: gl.constexpr, W_TURNED: gl.constexpr,
    SHORT: gl.constexpr, BACKWARD: gl.constexpr,
):  # fmt: skip
    """Take x [rows, inner] times w: [columns, inner] transposed, or [inner, columns] if W_TURNED.

    Arguments *_tiles are descriptors of tiles; `read_tiles` are of a, backward. Programs (i, j)
    make columns j N to (j + 1) N of every num_programs(0)-th tile.
    """
    factor = 1.0
    if SHORT:
        first, second = gl.load(first_unit), gl.load(second_unit)
        if BACKWARD:  # of down and of a; dy and dz have one unit
            factor = first * gl.sqrt(second)
        else:  # of up and of a: z^2 in units of a
            z = first * x_unit
            factor = z * z / second
    M: gl.constexpr = x_tiles.block_shape[0]
    K: gl.constexpr = x_tiles.block_shape[1]
    N: gl.constexpr = w_tiles.block_shape[1 if W_TURNED else 0]
    W: gl.constexpr = out_tiles.block_shape[1]
    w_shape: gl.constexpr = [STEPS, K, N] if W_TURNED else [STEPS, N, K]
    x_ring = gl.allocate_shared_memory(x_tiles.dtype, [STAGES, M, K], x_tiles.layout)
    w_slab = gl.allocate_shared_memory(w_tiles.dtype, w_shape, w_tiles.layout)
    HELD: gl.constexpr = N // W if BACKWARD else 1
    held = gl.allocate_shared_memory(out_tiles.dtype, [2 * HELD, M, W], out_tiles.layout)
    turned = held
    if SHORT:
        turned = gl.allocate_shared_memory(out_tiles.dtype, [2, W, M], turned_tiles.layout)
    once, read = _barriers(1), _barriers(2)
    room = x_ring, w_slab, _barriers(STAGES), _barriers(STAGES), once.index(0), _barriers(2)
    gl.warp_specialize(
        [
            (_make, (
                x_tiles, w_tiles, read_tiles, out_tiles, turned_tiles, signs, room, held, turned,
                read.index(0), rows, slope, factor, 0, STEPS, STAGES, W_TURNED, SHORT, BACKWARD,
            )),
            (_make, (
                x_tiles, w_tiles, read_tiles, out_tiles, turned_tiles, signs, room, held, turned,
                read.index(1), rows, slope, factor, 1, STEPS, STAGES, W_TURNED, SHORT, BACKWARD,
            )),
            (_load, (x_tiles, w_tiles, room, rows, STEPS, STAGES, W_TURNED)),
        ],
        [4, 1],
        [GROUP_REGISTERS, LOAD_REGISTERS],
    )  # fmt: skip


def columns_at_once(inner: int, step: int, itemsize: int) -> int:
    """Return how many columns of w, of `inner` numbers in steps of `step`, a program can keep."""
    fit: int = SLAB // (triton.cdiv(inner, step) * step * itemsize)
    return min(MOST_COLUMNS // itemsize, 1 << fit.bit_length() - 1)


def sign_words(x: Tensor, columns: int) -> Tensor:
    """Return room for the signs of a product of FP8 x [rows, inner] that has so many columns."""
    at_once = columns_at_once(x.shape[1], SHORT_STEP, 1)
    parts = triton.cdiv(columns, at_once) * triton.cdiv(at_once, PART)
    return x.new_empty(x.shape[0], 4 * parts, dtype=torch.int32)


def run(
    x: Tensor, w: Tensor, activated: Tensor, out: Tensor, slope: float, *, backward: bool,
    short: Short | None = None,
) -> None:  # fmt: skip
    """Make `out`: a forward, dz of `activated` backward.

    In bfloat16 w is `up` [columns, inner] forward and `down` [inner, columns] backward; in FP8,
    where `short` has the rest, [columns, inner] both ways.
    """
    (rows, inner), columns = x.shape, out.shape[1]
    step, stages = (SHORT_STEP, 3 if backward else 4) if short else (STEP, 8)
    wide = columns_at_once(inner, step, x.itemsize)
    w_turned, part = backward and not short, min(wide, PART)

    def programs(_: object) -> tuple[int, int]:
        across = triton.cdiv(columns, wide)
        return max(1, min(processors(out) // across, triton.cdiv(rows, ROWS))), across

    launch(
        _hidden_product,
        programs,
        tiles(x, ROWS, step),
        tiles(w, step, wide) if w_turned else tiles(w, wide, step),
        tiles(activated.view(out.dtype), ROWS, part),
        tiles(out, ROWS, part),
        tiles(short.turned, part, ROWS) if short else None,
        *((short.signs, *short.units, short.x_unit) if short else [None] * 4),
        rows,
        slope,
        STEPS=triton.cdiv(inner, step),
        STAGES=stages,
        W_TURNED=w_turned,
        SHORT=short is not None,
        BACKWARD=backward,
        num_warps=4,
    )


def tiles(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Return a matrix as kernels read and write it, by tiles of so many rows and columns."""
    shape = [rows, columns]
    layout = gl.NVMMASharedLayout.get_default_for(shape, TYPES[matrix.dtype])
    # Triton 3.6 asks for its address, which a tensor that the compiler traces has not
    unplaced = SimpleNamespace(dtype=matrix.dtype, data_ptr=lambda: 0)
    made = TensorDescriptor(unplaced, matrix.shape, matrix.stride(), shape, layout)
    made.base = matrix
    return made

"""The search of quant.trellis as a Triton kernel: a program for each path, all states at once.

A path is as many steps, one after another, as it has rows; on a GPU a launch a step would take most
of the time. Here the costs of all states stay in registers from row to row.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from paramgolf.codec.rans_model import STATES
from paramgolf.quant.trellis import transitions

WARPS = 8  # a state a thread; on an H200 four warps take 1.2 times as long, one twice


@triton.jit
def _nearest(target, residue, maximum):
    """Return the integers nearest to the target of a residue modulo 4, within the maximum."""
    integer = 4 * tl.floor((target - residue) * 0.25 + 0.5) + residue
    integer -= 4 * tl.maximum(tl.ceil((integer - maximum) * 0.25), 0.0)
    return integer + 4 * tl.maximum(tl.ceil((-maximum - integer) * 0.25), 0.0)


@triton.jit
def _search(
    target, cost, maximum, bounds, before, residue, second, integers, rows,
    STATES: tl.constexpr,
):  # fmt: skip
    """Write the best path of one row of [paths, rows], between two `bounds`.

    before, residue int32 [STATES, 2]; `second` int8 [paths, rows, STATES] is scratch: whether the
    second of a state's two ways was the cheaper.
    """
    begin = tl.program_id(0).to(tl.int64) * rows
    start, stop = tl.load(bounds + tl.program_id(1)), tl.load(bounds + tl.program_id(1) + 1)
    state = tl.arange(0, STATES)
    before_0, before_1 = tl.load(before + 2 * state), tl.load(before + 2 * state + 1)
    residue_0 = tl.load(residue + 2 * state).to(tl.float32)
    residue_1 = tl.load(residue + 2 * state + 1).to(tl.float32)
    total = tl.where(state == 0, 0.0, float("inf"))
    for i in range(start, stop):
        at = begin + i
        t, c, m = tl.load(target + at), tl.load(cost + at), tl.load(maximum + at)
        error_0, error_1 = t - _nearest(t, residue_0, m), t - _nearest(t, residue_1, m)
        first = tl.gather(total, before_0, 0) + c * error_0 * error_0
        other = tl.gather(total, before_1, 0) + c * error_1 * error_1
        tl.store(second + at * STATES + state, (other < first).to(tl.int8))
        total = tl.minimum(first, other)
    z = tl.argmin(total, 0)
    tl.debug_barrier()  # what other threads of the program stored is read from here on
    for back in range(start, stop):
        at = begin + start + stop - 1 - back
        way = 2 * z + tl.load(second + at * STATES + z).to(tl.int32)
        nearest = _nearest(
            tl.load(target + at), tl.load(residue + way).to(tl.float32), tl.load(maximum + at)
        )
        tl.store(integers + at, nearest)
        z = tl.load(before + way)


def search(target: Tensor, cost: Tensor, maximum: Tensor, *, paths: Sequence[int]) -> Tensor:
    """Return what `best_paths` does, of contiguous float32 [N, R]."""
    count, rows = target.shape
    second = torch.empty(count, rows, STATES, dtype=torch.int8, device=target.device)
    integers = torch.empty_like(target)
    _search[(count, len(paths))](
        target, cost, maximum, *_tables(tuple(paths), target.device), second, integers, rows,
        STATES=STATES, num_warps=WARPS,
    )  # fmt: skip
    return integers


@functools.cache
def _tables(paths: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return bounds, before and residue: made once, for a search takes less than a copy of them."""
    bounds = torch.tensor(list(itertools.accumulate(paths, initial=0)), device=device)
    before, residue = transitions(device)
    return bounds.int(), before.int(), residue.int()

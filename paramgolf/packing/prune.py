"""Selective pruning (pg#1019, pg#1334): set the cheapest +-1 to 0 until the artifact fits.

A weight of +-s, s the step of its grid, that becomes 0 adds s^2 to the squared error, so the
entries with the finest steps go first. How many must go is found on real compressed sizes: what the
entropy coder saves on an entry depends on all the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paramgolf.codec.dequantize import dequantize, finer_factor
from paramgolf.model.shapes import MATRICES
from paramgolf.progress import say

ENTRIES_PER_BYTE = 8  # what the first try takes for each byte too many (pg#1334)
SLACK_BYTES = 200  # good enough: so near below the limit
MAX_TRIES = 16
GROWTH = 4


@dataclass(frozen=True, slots=True)
class Try:
    """How many entries were zeroed, and the bytes of the artifact that came of it."""

    zeroed: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PruneRecord:
    """What pruning did; `missing_bytes` is what no pruning could save, 0 where the model fits."""

    candidates: int
    zeroed: int
    missing_bytes: int
    tries: tuple[Try, ...]


@dataclass(frozen=True, slots=True)
class Pruned:
    """The tensors to pack, and how they came about."""

    tensors: dict[str, Tensor]
    record: PruneRecord


def prune(
    tensors: dict[str, Tensor], size_of: Callable[[dict[str, Tensor]], int], limit_bytes: int
) -> Pruned:
    """Zero the cheapest +-1 of the block matrices until `size_of` is at most `limit_bytes`.

    Tensors that fit are returned as they are; so are those that would not fit without a single +-1,
    with a line in the log: the damage would buy nothing.
    """
    order = candidates(tensors)
    tries = search(lambda n: size_of(zeroed(tensors, order, n)), len(order), limit_bytes)
    fitting = [one.zeroed for one in tries if one.bytes <= limit_bytes]
    count = min(fitting, default=0)
    missing = 0 if fitting else min(one.bytes for one in tries) - limit_bytes
    if missing:
        say(f"package: pruning all {len(order):,} +-1 leaves {missing:,} bytes too many; not done")
    else:
        say(f"package: {count:,} of {len(order):,} +-1 pruned")
    record = PruneRecord(len(order), count, missing, tuple(tries))
    return Pruned(zeroed(tensors, order, count), record)


def candidates(tensors: dict[str, Tensor]) -> np.ndarray:
    """Return the positions of all +-1 of the block matrices, the cheapest first; int64 [n].

    Positions count through the matrices' integers, one matrix after another; equal costs keep the
    order of their positions.
    """
    positions, costs, start = [], [], 0
    for name in _pruned(tensors):
        integers = tensors[f"{name}.integers"]
        step = dequantize(torch.ones_like(integers), tensors[f"{name}.scales"])
        if f"{name}.finer" in tensors:
            step *= finer_factor(tensors[f"{name}.finer"], integers.shape[-1])
        ones = (integers.abs() == 1).flatten()
        positions.append(start + ones.nonzero().flatten().numpy())
        costs.append(step.flatten()[ones].numpy())
        start += integers.numel()
    if not positions:
        return np.empty(0, dtype=np.int64)
    return np.concatenate(positions)[np.argsort(np.concatenate(costs), kind="stable")]


def zeroed(tensors: dict[str, Tensor], order: np.ndarray, count: int) -> dict[str, Tensor]:
    """Return the tensors with the first `count` positions of `order` at 0; the input stays."""
    changed, start, chosen = dict(tensors), 0, order[:count]
    for name in _pruned(tensors):
        integers = tensors[f"{name}.integers"].clone()
        mine = chosen[(chosen >= start) & (chosen < start + integers.numel())] - start
        integers.view(-1)[torch.from_numpy(mine)] = 0
        changed[f"{name}.integers"] = integers
        start += integers.numel()
    return changed


def search(size_of: Callable[[int], int], most: int, limit_bytes: int) -> list[Try]:
    """Return the tries of a search for the least count 0..most whose size is within the limit.

    It grows until something fits, then interpolates between the largest count that does not fit
    and the smallest that does, halving the interval every other time. It ends within SLACK_BYTES
    below the limit, at neighboring counts, or after MAX_TRIES; sizes need not fall steadily.
    """
    tries = [Try(0, size_of(0))]
    low, high = tries[0], None
    count = min(most, ENTRIES_PER_BYTE * (low.bytes - limit_bytes))
    while low.bytes > limit_bytes and most and len(tries) < MAX_TRIES:
        tries.append(Try(count, size_of(count)))
        if tries[-1].bytes <= limit_bytes:
            high = tries[-1]
        else:
            low = tries[-1]
        if high is None:
            if count == most:
                break
            # the last growing step takes everything: that nothing fits must be known, not guessed
            count = most if len(tries) == MAX_TRIES - 1 else min(most, GROWTH * count)
        elif limit_bytes - high.bytes <= SLACK_BYTES or high.zeroed - low.zeroed <= 1:
            break
        else:
            count = _between(low, high, limit_bytes - SLACK_BYTES // 2, even=len(tries) % 2 == 0)
    return tries


def _between(low: Try, high: Try, target: int, *, even: bool) -> int:
    share = (low.bytes - target) / (low.bytes - high.bytes)
    count = low.zeroed + (high.zeroed - low.zeroed) * (0.5 if even else share)
    return min(max(round(count), low.zeroed + 1), high.zeroed - 1)


def _pruned(tensors: dict[str, Tensor]) -> list[str]:
    return [name for name in MATRICES if f"{name}.integers" in tensors]

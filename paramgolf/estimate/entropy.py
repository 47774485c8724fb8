"""What quantizing makes of Gaussian rows, and a codec of that: reach, entropy, code length.

A row of deviation sigma on a grid of step s holds integers of about 0.5 log2(2 pi e) -
log2(s / sigma) bits each (the size law of pg#1394).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist

from paramgolf.quant.config import PERCENTILES

NORMAL = NormalDist()


def best_percentile(maximum: int, columns: int) -> float:
    """Return the expected reach, in deviations, of the percentile that costs a row least error."""
    candidates = [expected_percentile(p, columns) for p in PERCENTILES]
    return min(candidates, key=lambda clip: expected_error(clip, maximum, columns))


def expected_magnitude(rank: float, columns: int) -> float:
    """Return the expected `rank`-th smallest |w| of a standard Gaussian row (Blom, 1958).

    The last rank is the expected maximum: 3.1 of 512 columns, 3.5 of 2048.
    """
    share = (rank - 0.375) / (columns + 0.25)
    return NORMAL.inv_cdf((1 + share) / 2)


def expected_percentile(share: float, columns: int) -> float:
    """Return the expected percentile of |w| in a row, interpolated between neighbors in rank."""
    place = 1 + share * (columns - 1)
    low, part = int(place), place - int(place)
    high = min(low + 1, columns)
    return (1 - part) * expected_magnitude(low, columns) + part * expected_magnitude(high, columns)


def expected_error(clip: float, maximum: int, columns: int) -> float:
    """Return a row's expected squared error per weight: rounding, and what `clip` cuts off."""
    cut = 0.0
    for rank in range(columns, 0, -1):
        beyond = expected_magnitude(rank, columns) - clip
        if beyond <= 0:
            break
        cut += beyond**2
    return (clip / maximum) ** 2 / 12 + cut / columns


def integer_probabilities(step: float, maximum: int) -> list[float]:
    """Return the chance of each integer -maximum..maximum of a Gaussian, `step` in deviations."""
    below = [NORMAL.cdf((q + 0.5) * step) for q in range(-maximum, maximum)]
    return [high - low for low, high in itertools.pairwise([0.0, *below, 1.0])]


def entropy_bits(probabilities: Sequence[float]) -> float:
    """Return the entropy, bits per symbol."""
    return -sum(p * math.log2(p) for p in probabilities if p > 0)


def huffman_bits(probabilities: Sequence[float]) -> float:
    """Return the mean length of the best prefix code, bits per symbol."""
    heap = [p for p in probabilities if p > 0]
    heapq.heapify(heap)
    total = 0.0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return total

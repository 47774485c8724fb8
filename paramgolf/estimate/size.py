"""Bytes of an artifact before anything is trained, by the entropy of quantised Gaussian rows.

A row of deviation sigma on a grid of step s holds integers of about 0.5 log2(2 pi e) -
log2(s / sigma) bits each; under SDClip s / sigma is clip / m, whatever was trained (#1394). What a
codec makes of them follows from their chances: brotli is a Huffman code here (within 0.1 % on
Gaussian integers of 4 to 8 bits), LZMA an adaptive coder that pays for adapting. Trained rows have
heavier tails than Gaussian ones: their absmax and percentile grids take fewer bits than said here.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from paramgolf.codec.config import PackageConfig
from paramgolf.model.config import ModelConfig
from paramgolf.model.shapes import MATRICES, shapes
from paramgolf.quant.config import QuantizeConfig

NORMAL = NormalDist()
PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)  # candidates of grid `percentile` (#414)
LZMA_EXCESS_BITS = 0.16  # a weight, above the entropy; 0.13 to 0.16 on Gaussian int5 to int8
HEADER_BYTES = 800  # compressed JSON: the model, the streams, the tensors
# bits of a float16 after the codec, with the bytes shuffled and without
SCALE_BITS = {True: 11.0, False: 11.5}  # row deviations that differ by a factor of about 1.3
VECTOR_BITS = {True: 12.5, False: 13.0}  # trained scales and gates, about 1, with their signs


@dataclass(frozen=True, slots=True)
class Part:
    """Expected bytes of a part of model.bin; `bits` is bits a weight, None but for integers."""

    name: str
    kind: str  # integers, scales, float16 or header, as in package.json
    weights: int
    bytes: int
    bits: float | None


def model_parts(
    model: ModelConfig, vocab_size: int, quantize: QuantizeConfig, package: PackageConfig
) -> list[Part]:
    """Return the expected parts of model.bin, in the order of its parameters."""
    parts, rows, others = [], 0, 0
    for name, shape in shapes(model, vocab_size).items():
        weights = math.prod(shape)
        if name in (*MATRICES, "embedding"):
            bits = bits_per_weight(name, shape[-1], quantize, package)
            parts.append(Part(name, "integers", weights, round(weights * bits / 8), bits))
            rows += weights // shape[-1]
        else:
            others += weights
    for name, kind, count, table in (
        ("scales", "scales", rows, SCALE_BITS),
        ("vectors", "float16", others, VECTOR_BITS),
    ):
        size = round(count * table[package.byte_shuffle] / 8)
        parts.append(Part(name, kind, count, size, None))
    return [*parts, Part("header", "header", 0, HEADER_BYTES, None)]


def bits_per_weight(
    name: str, columns: int, quantize: QuantizeConfig, package: PackageConfig
) -> float:
    """Return the bits that the codec leaves of one integer of the parameter `name`."""
    maximum = 2 ** (bits_of(name, quantize) - 1) - 1
    chances = integer_chances(reach(name, columns, quantize) / maximum, maximum)
    brotli, lzma = huffman_bits(chances), entropy_bits(chances) + LZMA_EXCESS_BITS
    return {"brotli": brotli, "lzma": lzma, "auto": min(brotli, lzma)}[package.codec]


def bits_of(name: str, quantize: QuantizeConfig) -> int:
    """Return the width of a parameter's integers."""
    return quantize.embedding_bits if name == "embedding" else quantize.matrix_bits


def reach(name: str, columns: int, quantize: QuantizeConfig) -> float:
    """Return the largest representable weight of a parameter, in deviations of its row."""
    if quantize.grid == "sdclip":
        if name == "embedding":
            return quantize.embedding_clip
        return quantize.mlp_clip if name in ("up", "down") else quantize.attention_clip
    if quantize.grid == "absmax":
        return expected_percentile(1.0, columns)
    maximum = 2 ** (bits_of(name, quantize) - 1) - 1
    candidates = [expected_percentile(p, columns) for p in PERCENTILES]
    return min(candidates, key=lambda clip: expected_error(clip, maximum, columns))


def expected_magnitude(rank: float, columns: int) -> float:
    """Return the expected `rank`-th smallest |w| of a standard Gaussian row (Blom, 1958).

    The last rank is the expected maximum: 3.1 of 512 columns, 3.5 of 2048.
    """
    share = (rank - 0.375) / (columns + 0.25)
    return NORMAL.inv_cdf((1 + share) / 2)


def expected_percentile(share: float, columns: int) -> float:
    """Return the expected percentile of |w| in a row, interpolated between ranks."""
    place = 1 + share * (columns - 1)
    low, part = int(place), place - int(place)
    high = min(low + 1, columns)
    return (1 - part) * expected_magnitude(low, columns) + part * expected_magnitude(high, columns)


def expected_error(clip: float, maximum: int, columns: int) -> float:
    """Return a row's expected squared error a weight: rounding, and what `clip` cuts off."""
    cut = 0.0
    for rank in range(columns, 0, -1):
        beyond = expected_magnitude(rank, columns) - clip
        if beyond <= 0:
            break
        cut += beyond**2
    return (clip / maximum) ** 2 / 12 + cut / columns


def integer_chances(step: float, maximum: int) -> list[float]:
    """Return the chance of each integer -maximum..maximum of a Gaussian, `step` in deviations."""
    return list(_chances(step, maximum))


def _chances(step: float, maximum: int) -> Iterator[float]:
    for q in range(-maximum, maximum + 1):
        low = 0.0 if q == -maximum else NORMAL.cdf((q - 0.5) * step)
        high = 1.0 if q == maximum else NORMAL.cdf((q + 0.5) * step)
        yield high - low


def entropy_law(step: float) -> float:
    """Return the size law, bits a weight: it holds where the step is below about 1 deviation."""
    return 0.5 * math.log2(2 * math.pi * math.e) - math.log2(step)


def entropy_bits(chances: Sequence[float]) -> float:
    """Return the entropy, bits a symbol."""
    return -sum(p * math.log2(p) for p in chances if p > 0)


def huffman_bits(chances: Sequence[float]) -> float:
    """Return the mean length of the best prefix code, bits a symbol."""
    heap = [p for p in chances if p > 0]
    heapq.heapify(heap)
    total = 0.0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return total

"""Bytes of an artifact before anything is trained, by the entropy of quantised Gaussian rows.

Under SDClip a step is clip / m deviations, whatever was trained (#1394). What a codec makes of the
integers follows from their chances: brotli is a Huffman code here (within 0.1 % on Gaussian
integers of 4 to 8 bits), LZMA an adaptive coder that pays for adapting. Trained rows have heavier
tails than Gaussian ones: their absmax and percentile grids take fewer bits than said here. Not
counted: what pruning would save (package.prune).

GPTQ rounds weights to which the errors of earlier columns were added, so its integers spread wider
than rounded weights would. Of int6 that is 0.3 % of the bytes, of int5 1.2 %, of int4 6 %.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass, replace

from paramgolf.codec.config import PackageConfig
from paramgolf.estimate.entropy import (
    best_percentile,
    entropy_bits,
    expected_percentile,
    huffman_bits,
    integer_chances,
)
from paramgolf.model.config import ModelConfig
from paramgolf.model.shapes import MATRICES, PROJECTIONS, TABLES, Shape, repeat_count, shapes
from paramgolf.quant.config import QuantizeConfig

LZMA_EXCESS_BITS = 0.16  # a weight, above the entropy; 0.13 to 0.16 on Gaussian int5 to int8
# variance that GPTQ adds to a row, in units of the rounding error's (step^2 / 12): 0.4 to 0.9 in
# trained networks, by how strongly the inputs of a matrix correlate
GPTQ_VARIANCE = 0.8
RANS_EXCESS_BITS = 0.01  # its states, tables and rounded frequencies, on full-size matrices
HEADER_BYTES = 800  # compressed JSON: the model, the streams, the tensors
# bits of a float16 after the codec, with the bytes shuffled and without
SCALE_BITS = {True: 11.0, False: 11.5}  # row deviations that differ by a factor of about 1.3
VECTOR_BITS = {True: 12.5, False: 13.0}  # trained scales and gains, about 1 or spread like gates
TABLE_BITS = {True: 13.5, False: 14.2}  # Gaussian weights of tables and projections
FINER_BITS = 2  # more, of a finer group's weights
LEFT_BITS, RIGHT_BITS = 1.4, 3.7  # of a low-rank correction's codes after the codec


@dataclass(frozen=True, slots=True)
class Part:
    """Expected bytes of a part of model.bin; `bits` is bits a weight, None but for weights."""

    name: str
    kind: str  # integers, scales, float16 or header, as in package.json
    weights: int
    bytes: int
    bits: float | None


def model_parts(
    model: ModelConfig, vocab_size: int, quantize: QuantizeConfig, package: PackageConfig
) -> list[Part]:
    """Return the expected parts of model.bin, in the order of its parameters."""
    parts, rows, others, vector_bits = [], 0, 0, 0.0
    share, shuffled = high_share(model, quantize), package.byte_shuffle
    sizes = shapes(model, vocab_size)
    for name, shape in sizes.items():
        weights = math.prod(shape)
        widths = bits_of(name, quantize, share)
        if not widths:
            kind_bits = TABLE_BITS if name in (*TABLES, *PROJECTIONS) else VECTOR_BITS
            others, vector_bits = others + weights, vector_bits + weights * kind_bits[shuffled]
            continue
        bits = sum(
            part * bits_per_weight(name, shape[-1], width, quantize, package)
            for width, part in widths.items()
        )
        parts.append(Part(name, "integers", weights, round(weights * bits / 8), bits))
        rows += weights // shape[-1]
    parts += _refinements(sizes, quantize)
    return [
        *parts,
        Part("scales", "scales", rows, round(rows * SCALE_BITS[shuffled] / 8), None),
        Part("vectors", "float16", others, round(vector_bits / 8), None),
        Part("header", "header", 0, HEADER_BYTES, None),
    ]


def bits_of(name: str, quantize: QuantizeConfig, share: float = 1.0) -> dict[int, float]:
    """Return the widths of a parameter's integers and the part that has each; {}: it is float16.

    `share` is the part of the block matrices that gets quantize.matrix_bits.
    """
    if name == "embedding":
        return {quantize.embedding_bits: 1.0}
    if name in MATRICES:
        if share == 1 or quantize.low_bits == quantize.matrix_bits:
            return {quantize.matrix_bits: 1.0}
        return {quantize.matrix_bits: share, quantize.low_bits: 1 - share}
    if name == "head_gate":
        width = quantize.gate_bits
    else:
        width = quantize.table_bits if name in (*TABLES, *PROJECTIONS) else None
    return {} if width is None else {width: 1.0}


def high_share(model: ModelConfig, quantize: QuantizeConfig) -> float:
    """Return the expected part of the block matrices that gets quantize.matrix_bits.

    Which ones do is known after calibration only; each is taken to be as likely as another.
    """
    if quantize.high_bits_matrices is None:
        return 1.0
    untied = repeat_count(model) if model.untied_repeats else 0
    matrices = len(MATRICES) * model.layers + 2 * untied
    share = min(1.0, quantize.high_bits_matrices / matrices)
    if quantize.recurrent_high:
        times = Counter(model.orders[-1])
        repeated = len(MATRICES) * sum(count > 1 for count in times.values()) + 2 * untied
        share += (1 - share) * repeated / matrices
    return share


def allocation_uncertainty(
    model: ModelConfig, vocab_size: int, quantize: QuantizeConfig, package: PackageConfig
) -> int:
    """Return by how many bytes the choice of the matrices of more bits may be off (2 sigma).

    The choice is taken as a draw without replacement from matrices of different sizes.
    """
    share = high_share(model, quantize)
    sizes = [
        math.prod(shape[1:]) * (_width_bits(name, shape[-1], quantize, package) / 8)
        for name, shape in shapes(model, vocab_size).items()
        if name in MATRICES
        for _ in range(shape[0])
    ]
    drawn, left = share * len(sizes), 1 - share
    variance = drawn * left * statistics.pvariance(sizes) * len(sizes) / (len(sizes) - 1)
    return round(2 * math.sqrt(variance))


def _width_bits(name: str, columns: int, quantize: QuantizeConfig, package: PackageConfig) -> float:
    """Return how many bits a weight's integer of matrix_bits takes more than one of low_bits."""
    widths = quantize.matrix_bits, quantize.low_bits
    high, low = (bits_per_weight(name, columns, width, quantize, package) for width in widths)
    return high - low


def bits_per_weight(
    name: str, columns: int, width: int, quantize: QuantizeConfig, package: PackageConfig
) -> float:
    """Return the bits that the codec leaves of one integer of `width` bits of a parameter."""
    maximum = 2 ** (width - 1) - 1
    step = reach(name, columns, maximum, quantize) / maximum
    if solved(name, quantize):
        step /= math.sqrt(1 + GPTQ_VARIANCE * step**2 / 12)
    chances = integer_chances(step, maximum)
    brotli, lzma = huffman_bits(chances), entropy_bits(chances) + LZMA_EXCESS_BITS
    ours = min(entropy_bits(chances) + RANS_EXCESS_BITS, brotli)
    sizes = {"brotli": brotli, "lzma": lzma, "rans": ours, "auto": min(ours, lzma)}
    return sizes[package.codec]


def solved(name: str, quantize: QuantizeConfig) -> bool:
    """Tell whether GPTQ chooses a parameter's integers; else they are rounded to the nearest."""
    if name == "embedding":
        return (quantize.embedding_method or quantize.method) == "gptq"
    return name in MATRICES and quantize.method == "gptq"


def reach(name: str, columns: int, maximum: int, quantize: QuantizeConfig) -> float:
    """Return the largest representable weight of a parameter, in deviations of its row."""
    has_hessian = name in (*MATRICES, "embedding")
    if quantize.grid == "absmax" or not has_hessian:
        return expected_percentile(1.0, columns)
    if quantize.grid == "percentile":
        return best_percentile(maximum, columns)
    if name == "embedding":
        return quantize.embedding_clip
    return quantize.mlp_clip if name in ("up", "down") else quantize.attention_clip


def _refinements(sizes: dict[str, Shape], quantize: QuantizeConfig) -> list[Part]:
    """Return what finer groups and low-rank corrections add, on the largest matrices."""
    matrices = [
        shape[-2:]
        for name in (*MATRICES, "embedding")
        for shape in [sizes[name]] * (sizes[name][0] if len(sizes[name]) == 3 else 1)
    ]
    parts = []
    if quantize.finer_groups:
        rows = sum(rows for rows, _ in matrices) / len(matrices)
        weights = round(quantize.finer_groups * quantize.group_columns * rows)
        parts.append(Part("finer groups", "integers", 0, weights * FINER_BITS // 8, None))
    corrected = sorted(matrices, key=lambda shape: -math.prod(shape))
    codes = 0.0
    for rows, columns in corrected[: quantize.low_rank_matrices]:
        rank = min(quantize.low_rank, rows, columns)
        codes += rank * (rows * LEFT_BITS + columns * RIGHT_BITS) / 8
        codes += 2 * rank * (1 + columns / quantize.low_rank_group)  # float16 scales
    if codes:
        parts.append(Part("low-rank codes", "integers", 0, round(codes), None))
    return parts


def fitted(
    model: ModelConfig,
    vocab_size: int,
    quantize: QuantizeConfig,
    package: PackageConfig,
    *,
    code_bytes: int,
) -> tuple[QuantizeConfig, float]:
    """Return the configuration with the clips that quantize.fit_bytes leads to, and their factor.

    Without fit_bytes the clips stay, factor 1. The search ends at 1/4 and 16 times the clips.
    """
    low, high = -2.0, 4.0  # doublings
    if quantize.fit_bytes is None:
        return quantize, 1.0
    for _ in range(20):
        place = (low + high) / 2
        parts = model_parts(model, vocab_size, _scaled(quantize, 2**place), package)
        if sum(part.bytes for part in parts) + code_bytes > quantize.fit_bytes:
            low = place
        else:
            high = place
    return _scaled(quantize, 2**high), 2**high


def _scaled(quantize: QuantizeConfig, factor: float) -> QuantizeConfig:
    return replace(
        quantize,
        attention_clip=quantize.attention_clip * factor,
        mlp_clip=quantize.mlp_clip * factor,
        embedding_clip=quantize.embedding_clip * factor,
    )

"""Bytes of an artifact before anything is trained, by the entropy of quantized Gaussian rows.

Under SDClip a step is clip / m deviations, whatever was trained (pg#1394). What a codec makes of
the integers follows from their probabilities: brotli is a Huffman code here (within 0.1 % on
Gaussian integers of 4 to 8 bits), LZMA an adaptive coder that pays for adapting. Trained rows have
heavier tails than Gaussian ones: their absmax and percentile grids take fewer bits than said here.
Not counted: what pruning would save (package.prune), and matrices that no pass reads.

GPTQ rounds weights to which the errors of earlier columns were added, so its integers spread wider
than rounded weights would. Of int6 that is 0.3 % of the bytes, of int5 1.2 %, of int4 6 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from paramgolf.codec.config import PackageConfig
from paramgolf.estimate.allocation import expected_bits, other_allocations
from paramgolf.estimate.entropy import (
    best_percentile,
    entropy_bits,
    expected_percentile,
    huffman_bits,
    integer_probabilities,
)
from paramgolf.model.config import ModelConfig
from paramgolf.model.shapes import MATRICES, PROJECTIONS, TABLES, Shape, shapes
from paramgolf.quant.allocation import Bits, rounded_bits
from paramgolf.quant.config import FINER_BITS, LEAST_DOUBLINGS, MOST_DOUBLINGS, QuantizeConfig
from paramgolf.quant.row_grid import RowGrid, grid_of
from paramgolf.training.config import TrainConfig

LZMA_EXCESS_BITS = 0.16  # per weight, above the entropy; 0.13 to 0.16 on Gaussian int5 to int8
# variance that GPTQ adds to a row, in units of the rounding error's (step^2 / 12): 0.4 to 0.9 in
# trained networks, by how strongly the inputs of a matrix correlate
GPTQ_VARIANCE = 0.8
RANS_EXCESS_BITS = 0.01  # its states, tables and rounded frequencies, on full-size matrices
HEADER_BYTES = 700  # compressed JSON: the model, the streams, the tensors
# bits of a float16 after the codec, with the bytes shuffled
DIGITS = 10  # of float16, after its first; shorter ones cost a bit less each
SCALE_BITS = 11.0  # row deviations that differ by a factor of about 1.3
VECTOR_BITS = 12.5  # trained scales and gains, about 1 or spread like gates
TABLE_BITS = 13.5  # Gaussian weights of tables and projections
LEFT_BITS, RIGHT_BITS = 1.4, 3.7  # of a low-rank correction's codes after the codec
# deviation of a trained matrix's rows, in units of Muon's balance; with it pg#1296 comes out at
# 16.4 MB, where 16.0 were published, and pg#1204 at 15.1 MB, where 15.9 were published
MUON_BALANCE = 5.2
TABLE_DEVIATION = 0.25  # of the embedding's rows in the trained sample: 0.22
DEVIATION_DOUBT = 0.1  # the share by which trained deviations may be off

Deviations = Mapping[str, float]  # of a parameter's rows


@dataclass(frozen=True, slots=True)
class ExpectedPart:
    """Expected bytes of a part of model.bin; `bits` is bits per weight, None but for weights."""

    name: str
    kind: str  # integers, scales, float16 or header, as in package.json
    weights: int
    bytes: int
    bits: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBytes:
    """What model.bin will be made of.

    Of `deviations` depends how coarse quantize.least_reach makes the rows; else they do not matter.
    """

    model: ModelConfig
    vocab_size: int
    quantize: QuantizeConfig
    package: PackageConfig
    deviations: Deviations

    @property
    def total(self) -> int:
        """The expected bytes of model.bin."""
        return sum(part.bytes for part in self.parts())

    def parts(self) -> list[ExpectedPart]:
        """Return the expected parts of model.bin, in the order of its parameters."""
        parts, rows, others, vector_bits = [], 0, 0, 0.0
        quantize = self.quantize
        bits_of = {**expected_bits(self.model, quantize), "embedding": (quantize.embedding_bits,)}
        sizes = shapes(self.model, self.vocab_size)
        for name, shape in sizes.items():
            of_layers = bits_of.get(name, (rounded_bits(name, quantize),))
            widths = [width for width in of_layers if width is not None]
            weights = math.prod((len(widths), *shape[1:]) if name in MATRICES else shape)
            if None in of_layers:  # float16
                kind_bits = TABLE_BITS if name in (*TABLES, *PROJECTIONS) else VECTOR_BITS
                each = kind_bits - (DIGITS - quantize.vector_digits)
                others, vector_bits = others + weights, vector_bits + weights * each
                continue
            by_width = {width: self.bits_per_weight(name, shape[-1], width) for width in {*widths}}
            bits = sum(by_width[width] for width in widths) / max(1, len(widths))
            parts.append(ExpectedPart(name, "integers", weights, round(weights * bits / 8), bits))
            rows += math.prod(shape[:-1])
        parts += _refinements(sizes, quantize)
        scale_bits = SCALE_BITS - (DIGITS - quantize.scale_digits)
        return [
            *parts,
            ExpectedPart("scales", "scales", rows, round(rows * scale_bits / 8), None),
            ExpectedPart("vectors", "float16", others, round(vector_bits / 8), None),
            ExpectedPart("header", "header", 0, HEADER_BYTES, None),
        ]

    def bits_per_weight(self, name: str, columns: int, width: int) -> float:
        """Return the bits that the codec leaves of one integer of `width` bits of a parameter."""
        grid = replace(grid_of(name, self.quantize), bits=width)
        least = grid.least_reach / self.deviations.get(name, math.inf)
        step = max(reach(grid, columns), least) / grid.maximum
        if solved(name, self.quantize):
            step /= math.sqrt(1 + GPTQ_VARIANCE * step**2 / 12)
        probabilities = integer_probabilities(step, grid.maximum)
        brotli, lzma = huffman_bits(probabilities), entropy_bits(probabilities) + LZMA_EXCESS_BITS
        ours = min(entropy_bits(probabilities) + RANS_EXCESS_BITS, brotli)
        sizes = {"brotli": brotli, "lzma": lzma, "rans": ours, "auto": min(ours, lzma)}
        return sizes[self.package.codec]

    def allocation_uncertainty(self) -> int:
        """Return by how many bytes the choice of the matrices of more bits may be off."""
        quantize = self.quantize
        if quantize.high_bits_matrices is None:
            return 0
        sizes = shapes(self.model, self.vocab_size)

        def price(name: str, width: int) -> float:
            _, rows, columns = sizes[name]
            return rows * columns * self.bits_per_weight(name, columns, width) / 8

        widths = quantize.matrix_bits, quantize.low_bits
        prices = {(name, width): price(name, width) for name in MATRICES for width in widths}

        def total(bits: Bits) -> float:
            return sum(prices[name, width] for name in bits for width in bits[name])

        expected = total(expected_bits(self.model, quantize))
        others = other_allocations(self.model, quantize)
        return round(max(abs(total(bits) - expected) for bits in others))

    def deviation_uncertainty(self) -> int:
        """Return by how many bytes the deviations may be off; 0 where no row is that small."""
        wider = {name: (1 + DEVIATION_DOUBT) * value for name, value in self.deviations.items()}
        return replace(self, deviations=wider).total - self.total

    def fitted(self, code_bytes: int) -> tuple[ModelBytes, float]:
        """Return the model with the clips that quantize.fit_bytes leads to, and their factor.

        Without fit_bytes the clips stay, factor 1.
        """
        low, high = LEAST_DOUBLINGS, MOST_DOUBLINGS
        limit = self.quantize.fit_bytes
        if limit is None:
            return self, 1.0
        plain = replace(self, deviations={})  # least_reach is of grids that are not fitted
        for _ in range(20):
            place = (low + high) / 2
            if plain._scaled(place).total + code_bytes > limit:
                low = place
            else:
                high = place
        return self._scaled(high), 2**high

    def _scaled(self, doublings: float) -> ModelBytes:
        return replace(self, quantize=self.quantize.scaled(doublings))


def trained_deviations(model: ModelConfig, vocab_size: int, train: TrainConfig) -> Deviations:
    """Return the standard deviation of each parameter's rows at the end of a long training.

    Muon's updates have deviation 1 / sqrt(columns); rate and decay come to a balance at the root
    of their ratio.
    """
    deviations = dict.fromkeys(TABLES, TABLE_DEVIATION)
    if train.matrix_decay > 0:
        balance = MUON_BALANCE * math.sqrt(train.matrix_lr / train.matrix_decay)
        for name, shape in shapes(model, vocab_size).items():
            if name in (*MATRICES, *PROJECTIONS):
                deviations[name] = balance / math.sqrt(shape[-1])
    return deviations


def solved(name: str, quantize: QuantizeConfig) -> bool:
    """Tell whether GPTQ chooses a parameter's integers; else they are rounded to the nearest."""
    return name in (*MATRICES, "embedding") and quantize.method_of(name) == "gptq"


def reach(grid: RowGrid, columns: int) -> float:
    """Return the largest weight on a row's grid, in deviations of the row, but for least_reach."""
    match grid.kind:
        case "absmax":
            return expected_percentile(1.0, columns)
        case "percentile":
            return best_percentile(grid.maximum, columns)
        case "sdclip":
            return grid.clip


def _refinements(sizes: dict[str, Shape], quantize: QuantizeConfig) -> list[ExpectedPart]:
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
        parts.append(ExpectedPart("finer groups", "integers", 0, weights * FINER_BITS // 8, None))
    corrected = sorted(matrices, key=lambda shape: -math.prod(shape))
    codes = 0.0
    for rows, columns in corrected[: quantize.low_rank_matrices]:
        rank = min(quantize.low_rank, rows, columns)
        codes += rank * (rows * LEFT_BITS + columns * RIGHT_BITS) / 8
        codes += 2 * rank * (1 + columns / quantize.low_rank_group)  # float16 scales
    if codes:
        parts.append(ExpectedPart("low-rank codes", "integers", 0, round(codes), None))
    return parts

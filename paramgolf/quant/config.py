"""Parameters of calibrate and quantize, and what is fixed of them; needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from paramgolf.schema import (
    Fault,
    Natural,
    NaturalFloat,
    Positive,
    PositiveFloat,
    Range,
    Seed,
    Share,
)

BitWidth = Annotated[int, Range(2, 8)]
Digits = Annotated[int, Range(1, 10)]

# of |w|: candidates of a row's reach (pg#414, pg#1019)
PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
FINER_BITS = 2  # more, of a finer group: integers of a quarter of the step (pg#1908)
LEAST_DOUBLINGS, MOST_DOUBLINGS = -2.0, 4.0  # of the clips, by fit_bytes: 1/4 to 16 times
MOST_BITS = 8  # of an integer that is stored as int8


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateConfig:
    """Which text the Hessians see; units and meanings are in recipes/base.yaml."""

    source: Literal["train", "generate"]
    sequences: Positive
    batch_sequences: Positive
    network: Literal["trained", "plain"]
    first_token: Literal["bos", "random"]
    rope_follows_length: bool
    temperature: PositiveFloat
    seed: Seed | None
    sensitivity_sequences: Natural

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the fields together."""
        if self.sensitivity_sequences > self.sequences:
            yield "sensitivity_sequences", f"must lie in 0..sequences ({self.sequences})"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeConfig:
    """Grids and bits of the families; units and meanings are in recipes/base.yaml."""

    method: Literal["gptq", "nearest"]
    embedding_method: Literal["gptq", "nearest"] | None
    grid: Literal["sdclip", "percentile", "absmax"]
    embedding_grid: Literal["sdclip", "percentile", "absmax"] | None
    percentile_by: Literal["row", "matrix"]
    least_reach: NaturalFloat
    matrix_bits: BitWidth
    mlp_bits: BitWidth | None
    embedding_bits: BitWidth | None
    high_bits_matrices: Natural | None
    low_bits: BitWidth
    recurrent_high: bool
    trellis: bool
    scale_digits: Digits
    vector_digits: Digits
    gate_bits: BitWidth | None
    table_bits: BitWidth | None
    table_least_reach: NaturalFloat
    bigram_proj_bits: BitWidth | None
    attention_clip: PositiveFloat
    mlp_clip: PositiveFloat
    embedding_clip: PositiveFloat
    hessian_clip: NaturalFloat
    balance: Share
    column_steps: bool
    damping: NaturalFloat
    block_columns: Positive
    act_order: bool
    dead_inputs: Literal["mean", "one"]
    row_fallback: bool
    finer_groups: Natural
    group_columns: Positive
    low_rank_matrices: Natural
    low_rank: Annotated[int, Range(1, 64)]
    low_rank_group: Positive
    low_rank_left_scales: Literal["component", "matrix"]
    low_rank_always: bool
    adjust_steps: Natural
    fit_bytes: Positive | None
    fit_code_bytes: Natural
    fit_codec: Literal["brotli", "lzma", "rans", "auto"]

    def method_of(self, name: str) -> Literal["gptq", "nearest"]:
        """Return what chooses the integers of a parameter that has a Hessian."""
        return (name == "embedding" and self.embedding_method) or self.method

    def scaled(self, doublings: float) -> QuantizeConfig:
        """Return the configuration with all clips doubled so many times."""
        names = "attention_clip", "mlp_clip", "embedding_clip"
        return replace(self, **{name: getattr(self, name) * 2**doublings for name in names})

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the fields together."""
        if self.fit_bytes is not None and self.grid != "sdclip":
            yield "fit_bytes", "needs `grid` sdclip, whose clips it moves"
        if self.fit_bytes is not None and self.fit_bytes <= self.fit_code_bytes:
            yield "fit_bytes", "must be above `quantize.fit_code_bytes`, those of the code"
        if self.mlp_bits is not None and self.high_bits_matrices is not None:
            yield "mlp_bits", "must be null with `high_bits_matrices`, which deals out all bits"
        if self.balance > 0 and self.percentile_by == "matrix":
            yield "percentile_by", "must be row with `balance`, which chooses scales by itself"
        widest = max(self.matrix_bits, self.mlp_bits or 0, self.low_bits)
        if self.trellis and (widest > MOST_BITS - 1 or self.finer_groups):
            yield "trellis", "needs bits of at most 7 in all matrices, and no `finer_groups`"
        if self.adjust_steps and self.low_rank_matrices:
            yield "adjust_steps", "needs `low_rank_matrices` 0: a row's scale is not that of both"
        methods = self.method, self.method_of("embedding")
        if self.column_steps and (self.finer_groups or "nearest" in methods):
            yield "column_steps", "needs `method` gptq, the embedding's too, and no `finer_groups`"

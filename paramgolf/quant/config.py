"""Parameters of calibrate and quantize."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateConfig:
    """Which text the Hessians see; units and meanings are in recipes/base.yaml."""

    source: Literal["train", "generate"]
    sequences: int
    batch_sequences: int
    temperature: float
    seed: int
    sensitivity_sequences: int

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the fields together."""
        if min(self.sequences, self.batch_sequences) < 1:
            yield "sequences` and `batch_sequences` must be at least 1"
        if not 0 <= self.sensitivity_sequences <= self.sequences:
            yield "sensitivity_sequences` must lie in 0..sequences"
        if self.temperature <= 0:
            yield f"temperature` must be above 0, found {self.temperature}"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeConfig:
    """Grids and bits a family; units and meanings are in recipes/base.yaml."""

    method: Literal["gptq", "nearest"]
    embedding_method: Literal["gptq", "nearest"] | None
    grid: Literal["sdclip", "percentile", "absmax"]
    least_reach: float
    matrix_bits: int
    embedding_bits: int
    high_bits_matrices: int | None
    low_bits: int
    recurrent_high: bool
    trellis: bool
    scale_digits: int
    vector_digits: int
    gate_bits: int | None
    table_bits: int | None
    attention_clip: float
    mlp_clip: float
    embedding_clip: float
    hessian_clip: float
    balance: float
    damping: float
    block_columns: int
    act_order: bool
    finer_groups: int
    group_columns: int
    low_rank_matrices: int
    low_rank: int
    low_rank_group: int
    low_rank_weighting: Literal["plain", "hessian"]
    fit_bytes: int | None
    fit_code_bytes: int
    fit_codec: Literal["brotli", "lzma", "rans", "auto"]

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the fields together."""
        for name in ("matrix_bits", "embedding_bits", "low_bits", "gate_bits", "table_bits"):
            bits = getattr(self, name)
            if bits is not None and not 2 <= bits <= 8:
                yield f"{name}` must lie in 2..8, found {bits}"
        for name in ("high_bits_matrices", "finer_groups", "low_rank_matrices"):
            if (getattr(self, name) or 0) < 0:
                yield f"{name}` must be 0 or more, found {getattr(self, name)}"
        if not 1 <= self.low_rank <= 64 or min(self.low_rank_group, self.group_columns) < 1:
            yield "low_rank` must lie in 1..64, `low_rank_group` and `group_columns` be at least 1"
        if self.fit_bytes is not None and (self.fit_bytes < 1 or self.grid != "sdclip"):
            yield "fit_bytes` must be at least 1, and needs `grid` sdclip, whose clips it moves"
        if self.least_reach < 0 or (self.least_reach > 0 and self.grid == "sdclip"):
            yield "least_reach` must be 0, or above 0 with `grid` percentile or absmax"
        if min(self.attention_clip, self.mlp_clip, self.embedding_clip) <= 0:
            yield "attention_clip`, `mlp_clip` and `embedding_clip` must be above 0"
        if self.fit_code_bytes < 0:
            yield f"fit_code_bytes` must be 0 or more, found {self.fit_code_bytes}"
        if not (1 <= self.scale_digits <= 10 and 1 <= self.vector_digits <= 10):
            yield "scale_digits` and `vector_digits` must lie in 1..10"
        if self.trellis and (max(self.matrix_bits, self.low_bits) > 7 or self.finer_groups):
            yield "trellis` needs `matrix_bits` and `low_bits` of at most 7, and no `finer_groups`"
        if not 0 <= self.balance <= 1:
            yield f"balance` must lie in 0..1, found {self.balance}"
        if self.damping < 0:
            yield f"damping` must be 0 or more, found {self.damping}"
        if self.block_columns < 1:
            yield "block_columns` must be at least 1"

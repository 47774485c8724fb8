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

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the fields together."""
        if min(self.sequences, self.batch_sequences) < 1:
            yield "sequences` and `batch_sequences` must be at least 1"
        if self.temperature <= 0:
            yield f"temperature` must be above 0, found {self.temperature}"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeConfig:
    """Grids and bits a family; units and meanings are in recipes/base.yaml."""

    method: Literal["gptq", "nearest"]
    grid: Literal["sdclip", "percentile", "absmax"]
    matrix_bits: int
    embedding_bits: int
    attention_clip: float
    mlp_clip: float
    embedding_clip: float
    hessian_clip: float
    damping: float
    block_columns: int
    act_order: bool

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the fields together."""
        for name in ("matrix_bits", "embedding_bits"):
            if not 2 <= getattr(self, name) <= 8:
                yield f"{name}` must lie in 2..8, found {getattr(self, name)}"
        if min(self.attention_clip, self.mlp_clip, self.embedding_clip) <= 0:
            yield "attention_clip`, `mlp_clip` and `embedding_clip` must be above 0"
        if self.damping < 0:
            yield f"damping` must be 0 or more, found {self.damping}"
        if self.block_columns < 1:
            yield "block_columns` must be at least 1"

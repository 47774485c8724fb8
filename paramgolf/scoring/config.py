"""Parameters of the evaluators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingConfig:
    """The sliding-window evaluation; units and meanings are in recipes/base.yaml."""

    window: int
    stride: int
    batch_windows: int
    max_tokens: int | None

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the fields together."""
        if not 1 <= self.stride <= self.window:
            yield f"stride` must lie in 1..window ({self.window}), found {self.stride}"
        if self.batch_windows < 1:
            yield "batch_windows` must be at least 1"
        if self.max_tokens is not None and self.max_tokens < 1:
            yield f"max_tokens` must be at least 1, or null for all, found {self.max_tokens}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptConfig:
    """The score-first adaptive evaluation; units and meanings are in recipes/base.yaml."""

    mode: Literal["none", "sgd"]
    window: int
    stride: int
    batch_windows: int
    max_tokens: int | None
    chunk_tokens: int
    epochs: int
    batch_sequences: int
    lr: float
    momentum: float
    clip_norm: float

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the fields together."""
        if min(self.chunk_tokens, self.batch_windows, self.epochs, self.batch_sequences) < 1:
            names = "`batch_windows`, `epochs` and `batch_sequences`"
            yield f"chunk_tokens`, {names} must be at least 1"
        if not 1 <= self.stride <= self.window:
            yield f"stride` must lie in 1..window ({self.window}), found {self.stride}"
        elif self.window % self.stride:
            yield "stride` must divide `window`, or a chunk's scores would spill over its edge"
        elif self.chunk_tokens % self.window:
            yield "chunk_tokens` must be a multiple of `window`, the length of a training sequence"
        if self.max_tokens is not None and self.max_tokens < 1:
            yield f"max_tokens` must be at least 1, or null for all, found {self.max_tokens}"
        if self.lr < 0 or self.clip_norm < 0 or not 0 <= self.momentum < 1:
            yield "lr` and `clip_norm` must be 0 or more, and `momentum` in 0..1"

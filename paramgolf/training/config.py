"""Parameters of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Budget, batch, optimisers and averaging; units and meanings are in recipes/base.yaml."""

    seed: int
    steps: int | None
    budget_seconds: float | None
    reserve_seconds: float
    batch_tokens: int
    micro_batch_tokens: int
    sequence_length: int
    loader: Literal["shuffled", "sequential"]
    token_lr: float
    matrix_lr: float
    scalar_lr: float
    token_decay: float
    matrix_decay: float
    scalar_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    muon_momentum: float
    muon_momentum_start: float
    muon_momentum_steps: int
    muon_iterations: int
    muon_coefficients: Literal["newton_schulz", "polar_express"]
    muon_normalise_rows: bool
    clip_norm: float
    warmdown: float
    warmdown_unit: Literal["fraction", "steps"]
    min_lr: float
    ema_decay: float
    ema_warmup: bool
    validate_every: int
    validation_tokens: int | None
    checkpoint_every: int

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the fields together."""
        if self.steps is None and self.budget_seconds is None:
            yield "steps` or `budget_seconds` must be set, or training would never end"
        if min(self.batch_tokens, self.micro_batch_tokens, self.sequence_length) < 1:
            yield "batch_tokens`, `micro_batch_tokens` and `sequence_length` must be at least 1"
            return
        if self.micro_batch_tokens % self.sequence_length:
            yield "micro_batch_tokens` must be a multiple of `sequence_length`"
        if self.batch_tokens % self.sequence_length:
            yield "batch_tokens` must be a multiple of `sequence_length`"
        if not 0 <= self.ema_decay < 1:
            yield f"ema_decay` must lie in 0..1, found {self.ema_decay}"
        if self.warmdown_unit == "fraction" and not 0 <= self.warmdown <= 1:
            yield f"warmdown` is a fraction and must lie in 0..1, found {self.warmdown}"

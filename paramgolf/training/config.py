"""Parameters of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPhase:
    """From point `at` of training (a fraction of the budget) on, batches have these sizes."""

    at: float
    batch_tokens: int
    sequence_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Budget, batch, optimisers and averaging; units and meanings are in recipes/base.yaml."""

    seed: int
    steps: int | None
    budget_seconds: float | None
    reserve_seconds: float
    batch_tokens: int
    micro_batch_tokens: int | Literal["auto"]
    sequence_length: int
    loader: Literal["shuffled", "coprime", "sequential", "documents"]
    curriculum: tuple[BatchPhase, ...]
    rewarm_steps: int
    token_lr: float
    matrix_lr: float
    scalar_lr: float
    token_decay: float
    matrix_decay: float
    scalar_decay: float
    decay_taper_start: float
    decay_taper_share: float
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    muon_momentum: float
    muon_momentum_start: float
    muon_momentum_steps: int
    muon_iterations: int
    muon_coefficients: Literal["newton_schulz", "polar_express"]
    muon_normalise_rows: bool
    muon_blocks_only: bool
    clip_norm: float
    clip_scope: Literal["global", "process"]
    warmdown: float
    warmdown_unit: Literal["fraction", "steps"]
    min_lr: float
    ema_decay: float
    ema_warmup: bool
    average: Literal["ema", "swa"]
    swa_every: int
    swa_below: float
    qat_below: float
    qat_bits: int
    qat_rounding: Literal["ste", "soft"]
    validate_every: int
    validation_tokens: int | None
    checkpoint_every: int

    @property
    def sizes(self) -> tuple[BatchPhase, ...]:
        """The batch of each phase, the first included."""
        first = BatchPhase(
            at=0.0, batch_tokens=self.batch_tokens, sequence_length=self.sequence_length
        )
        return (first, *self.curriculum)

    def document_tokens(self, sizes: BatchPhase) -> int | None:
        """Return how many tokens of its own document a token may see, or None: the whole row."""
        return sizes.sequence_length if self.loader == "documents" else None

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the fields together."""
        if self.steps is None and self.budget_seconds is None:
            yield "steps` or `budget_seconds` must be set, or training would never end"
        yield from self._size_faults()
        if not 0 <= self.ema_decay < 1:
            yield f"ema_decay` must lie in 0..1, found {self.ema_decay}"
        if self.warmdown_unit == "fraction" and not 0 <= self.warmdown <= 1:
            yield f"warmdown` is a fraction and must lie in 0..1, found {self.warmdown}"
        if not 0 <= self.decay_taper_start < 1:
            yield f"decay_taper_start` must lie in 0..1, found {self.decay_taper_start}"
        if self.swa_every < 1 or not 2 <= self.qat_bits <= 8:
            yield "swa_every` must be at least 1, and `qat_bits` lie in 2..8"

    def _size_faults(self) -> Iterator[str]:
        micro = self.micro_batch_tokens
        if micro != "auto" and micro < 1:
            yield "micro_batch_tokens` must be at least 1"
            return
        for i, sizes in enumerate(self.sizes):
            where = f"curriculum.{i - 1}." if i else ""
            if min(sizes.batch_tokens, sizes.sequence_length) < 1:
                yield f"{where}batch_tokens` and `sequence_length` must be at least 1"
            elif micro != "auto" and micro % sizes.sequence_length:
                yield f"{where}sequence_length` must divide `train.micro_batch_tokens`"
            elif sizes.batch_tokens % sizes.sequence_length:
                yield f"{where}batch_tokens` must be a multiple of the sequence length"
            elif micro != "auto" and self.loader == "documents" and sizes.batch_tokens % micro:
                yield f"{where}batch_tokens` must be a multiple of `train.micro_batch_tokens`"

"""Parameters of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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

BelowOne = Annotated[float, Range(0, below=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSizes:
    """From point `at` of training (a fraction of the budget) on, batches have these sizes."""

    at: BelowOne
    batch_tokens: Positive
    sequence_length: Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Budget, batch, optimizers and averaging; units and meanings are in recipes/base.yaml."""

    seed: Seed
    token_mask: bool
    second_token_weight: Share
    second_token_until: Annotated[float, Range(above=0, most=1)]
    steps: Positive | None
    budget_seconds: PositiveFloat | None
    reserve_seconds: NaturalFloat
    batch_tokens: Positive
    micro_batch_tokens: Positive | Literal["auto"]
    sequence_length: Positive
    precision: Literal["bf16", "fp8_mlp"]
    loader: Literal["shuffled", "coprime", "sequential", "documents"]
    curriculum: tuple[BatchSizes, ...]
    batch_rate_power: NaturalFloat
    token_lr: NaturalFloat
    matrix_lr: NaturalFloat
    scalar_lr: NaturalFloat
    token_decay: NaturalFloat
    matrix_decay: NaturalFloat
    cautious_decay: bool
    scalar_decay: NaturalFloat
    decay_taper_start: BelowOne
    decay_taper_share: NaturalFloat
    adam_beta1: BelowOne
    adam_beta2: BelowOne
    scalar_beta2: BelowOne | None
    adam_eps: PositiveFloat
    muon_momentum: BelowOne
    muon_momentum_start: BelowOne
    muon_momentum_steps: Natural
    muon_iterations: Annotated[int, Range(1, 100)]
    muon_coefficients: Literal["newton_schulz", "polar_express"]
    muon_normalise_rows: bool
    muon_row_floor: NaturalFloat
    muon_kv_heads: Natural
    muon_dtype: Literal["float32", "bfloat16"]
    muon_blocks_only: bool
    head_mixing: bool
    clip_norm: NaturalFloat
    clip_scope: Literal["global", "process"]
    warmdown: NaturalFloat
    warmdown_unit: Literal["fraction", "steps"]
    min_lr: Share
    ema_decay: BelowOne
    token_ema_decay: BelowOne | None
    scalar_ema_decay: BelowOne | None
    ema_warmup: bool
    average: Literal["ema", "swa"]
    swa_every: Positive
    swa_below: NaturalFloat
    qat_below: NaturalFloat
    qat_bits: Annotated[int, Range(2, 8)]
    qat_mlp_bits: Annotated[int, Range(2, 8)]
    qat_rounding: Literal["ste", "soft"]
    validate_every: Natural
    validation_tokens: Positive | None
    checkpoint_every: Natural

    @property
    def batch_sizes(self) -> tuple[BatchSizes, ...]:
        """The sizes of batches in their order, the first included."""
        first = BatchSizes(
            at=0.0, batch_tokens=self.batch_tokens, sequence_length=self.sequence_length
        )
        return (first, *self.curriculum)

    def sizes_at(self, fraction: float) -> BatchSizes:
        """Return the sizes that hold at a fraction of training."""
        return [sizes for sizes in self.batch_sizes if sizes.at <= fraction][-1]

    def batch_rate(self, sizes: BatchSizes) -> float:
        """Return the factor of all rates that goes with the tokens of a batch."""
        return float((sizes.batch_tokens / self.batch_tokens) ** self.batch_rate_power)

    def document_tokens(self, sizes: BatchSizes) -> int | None:
        """Return how many tokens of its own document a token may see, or None: the whole row."""
        return sizes.sequence_length if self.loader == "documents" else None

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the fields together."""
        if self.steps is None and self.budget_seconds is None:
            yield "steps", "or `budget_seconds` must be set, or training would never end"
        if self.budget_seconds is not None and self.reserve_seconds >= self.budget_seconds:
            yield "reserve_seconds", "must be below `train.budget_seconds`"
        yield from self._size_faults()
        starts = [phase.at for phase in self.curriculum]
        if starts != sorted(starts):
            yield "curriculum", f"must be in rising order of `at`, found {starts}"
        if self.warmdown_unit == "fraction" and self.warmdown > 1:
            yield "warmdown", f"is a fraction and must lie in 0..1, found {self.warmdown}"

    def _size_faults(self) -> Iterator[Fault]:
        micro = self.micro_batch_tokens
        for i, sizes in enumerate(self.batch_sizes):
            where = f"curriculum.{i - 1}." if i else ""
            if micro != "auto" and micro % sizes.sequence_length:
                yield f"{where}sequence_length", "must divide `train.micro_batch_tokens`"
            elif sizes.batch_tokens % sizes.sequence_length:
                yield f"{where}batch_tokens", "must be a multiple of the sequence length"
            elif micro != "auto" and self.loader == "documents" and sizes.batch_tokens % micro:
                yield f"{where}batch_tokens", "must be a multiple of `train.micro_batch_tokens`"

"""Parameters of the network, and the layer orders that they define."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Order = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrencePhase:
    """From point `at` of training (a step, or a fraction of the budget) layers run in `order`."""

    at: float
    order: Order


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape and options of the network; units, meanings and sources are in recipes/base.yaml."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp_hidden: int
    mlp_slope: float
    rope_dims: int
    rope_base: float
    rope_trained_length: int | None
    q_gain: float
    window_layers: tuple[int, ...]
    window: int
    xsa_layers: int
    layer_scale: bool
    softcap: float
    asymmetric_softcap: bool
    skips: Literal["none", "additive", "gated"]
    skip_rows: int | None
    parallel: Literal["none", "single", "merge", "routed", "mixed", "lanes"]
    parallel_start: int
    recurrence_unit: Literal["fraction", "step"]
    recurrence: tuple[RecurrencePhase, ...]
    untied_repeats: bool
    virtual_scalars: bool
    first_attention: bool
    smear: Literal["none", "channel", "token"]
    fused_markers: bool
    bigram_buckets: int
    bigram_dim: int
    value_embedding_dim: int
    value_embedding_layers: tuple[int, ...]
    value_residual: bool
    head_gate: Literal["none", "doubled", "dense", "sparse"]
    head_gate_scale: float

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def orders(self) -> tuple[Order, ...]:
        """The layer order of each phase of training; the first is every layer once."""
        return (tuple(range(self.layers)), *(phase.order for phase in self.recurrence))

    @property
    def skip_count(self) -> int:
        """Rows of skip weights: one a decoder step that has an encoder output to pop."""
        return self.skip_rows or max(len(order) // 2 for order in self.orders)

    def phase_at(self, fraction: float, step: int) -> int:
        """Return the phase (an index into `orders`) that is active at a point of training."""
        point = fraction if self.recurrence_unit == "fraction" else step
        return sum(phase.at <= point for phase in self.recurrence)

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the fields together."""
        if min(self.layers, self.width, self.heads, self.kv_heads, self.mlp_hidden) < 1:
            yield "layers`, `width`, `heads`, `kv_heads` and `mlp_hidden` must be at least 1"
            return
        if self.width % self.heads:
            yield f"heads` must divide `width`: {self.heads} does not divide {self.width}"
        if self.heads % self.kv_heads:
            yield f"kv_heads` must divide `heads`: {self.kv_heads} does not divide {self.heads}"
        if self.rope_dims % 2 or not 0 <= self.rope_dims <= self.head_dim:
            limit = self.head_dim
            yield f"rope_dims` must be even and at most the head size {limit}: {self.rope_dims}"
        yield from self._order_faults()
        yield from self._parallel_faults()
        if any(layer not in range(self.layers) for layer in self.window_layers) or self.window < 1:
            yield f"window_layers` must lie in 0..{self.layers - 1}, `window` be at least 1"
        if any(layer not in range(self.layers) for layer in self.value_embedding_layers):
            yield f"value_embedding_layers` must lie in 0..{self.layers - 1}"
        if self.value_embedding_layers and self.value_embedding_dim < 1:
            yield "value_embedding_dim` must be at least 1 when value_embedding_layers are named"
        if self.bigram_buckets and (self.bigram_buckets < 2 or self.bigram_dim < 1):
            yield "bigram_buckets` must be 0 or at least 2, with `bigram_dim` at least 1"

    def _parallel_faults(self) -> Iterator[str]:
        if self.parallel == "none":
            return
        start = self.parallel_start
        first = 1 + max(layer for order in self.orders for layer in order[: len(order) // 2])
        if not first <= start < self.layers:
            expected = f"lie in the decoder, {first}..{self.layers - 1}"
            yield f"parallel_start` must {expected} (the second half of each order), found {start}"

    def _order_faults(self) -> Iterator[str]:
        for i, phase in enumerate(self.recurrence):
            missing = sorted(set(phase.order) - set(range(self.layers)))
            unused = sorted(set(range(self.layers)) - set(phase.order))
            if missing:
                yield f"recurrence.{i}.order` names layers that do not exist: {missing}"
            if unused:
                yield f"recurrence.{i}.order` leaves out layers: {unused}"
            if self.recurrence_unit == "fraction" and not 0 <= phase.at < 1:
                yield f"recurrence.{i}.at` must lie in 0..1, found {phase.at}"
        for first, second in itertools.pairwise(self.recurrence):
            if second.at < first.at:
                yield f"recurrence` must be in rising order of `at`: {first.at} before {second.at}"

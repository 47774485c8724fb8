"""Parameters of the network, and the layer orders that they define."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from paramgolf.schema import Fault, Natural, NaturalFloat, Positive, PositiveFloat, Range

Order = tuple[int, ...]
LONGEST_ORDER = 1024  # layers that a pass may run; far above any use, far below what would hang
MOST_STORED = 1e4  # of what weights begin with that are stored as float16, up to 65504
GATE_CHANNELS = 12  # channels that a sparse gate reads (pg#1667)
# What a key is where it changes nothing, as JSON has it. model.bin names what differs from this and
# no more, so files outlast the keys that come: what stands here stays, and a new key comes with it.
OFF: dict[str, Any] = {
    "rope_trained_length": None,
    "window_layers": [],
    "window": 512,
    "xsa_layers": 0,
    "xsa_form": "projection",
    "layer_scale": False,
    "asymmetric_softcap": False,
    "skips": "none",
    "skip_rows": None,
    "lane_skips": True,
    "parallel": "none",
    "parallel_start": 0,
    "recurrence_unit": "fraction",
    "recurrence": [],
    "repeat_skips": True,
    "repeat_step": None,
    "untied_repeats": False,
    "virtual_scalars": False,
    "first_attention": True,
    "smear": "none",
    "smear_gate_init": 0.0,
    "bos_mask": True,
    "bigram_buckets": 0,
    "bigram_dim": 128,
    "bigram_table_std": 0.0,
    "bigram_proj_gain": 1.0,
    "value_embedding_dim": 128,
    "value_embedding_layers": [],
    "value_residual": False,
    "hidden_gain": False,
    "head_gate": "none",
    "head_gate_scale": 1.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrencePhase:
    """From point `at` of training (a step, or a fraction of the budget) layers run in `order`."""

    at: NaturalFloat
    order: Order


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape and options of the network; units, meanings and sources are in recipes/base.yaml."""

    layers: Annotated[int, Range(1, 1024)]
    width: Annotated[int, Range(1, 2**16)]
    heads: Positive
    kv_heads: Positive
    mlp_hidden: Annotated[int, Range(1, 2**20)]
    mlp_slope: Annotated[float, Range(0, 1)]
    rope_dims: Natural
    rope_base: Annotated[float, Range(above=1, most=1e12)]
    rope_trained_length: Positive | None
    q_gain: Annotated[float, Range(above=0, most=1e3)]
    window_layers: tuple[int, ...]
    window: Positive
    xsa_layers: Natural
    xsa_form: Literal["projection", "learned", "own_term"]
    layer_scale: bool
    softcap: Annotated[float, Range(above=0, most=1e6)]
    asymmetric_softcap: bool
    skips: Literal["none", "additive", "gated"]
    skip_rows: Natural | None
    lane_skips: bool
    parallel: Literal["none", "single", "merge", "routed", "mixed", "lanes"]
    parallel_start: Natural
    recurrence_unit: Literal["fraction", "step"]
    recurrence: tuple[RecurrencePhase, ...]
    repeat_skips: bool
    repeat_step: Annotated[float, Range(above=0, most=MOST_STORED)] | None
    untied_repeats: bool
    virtual_scalars: bool
    first_attention: bool
    smear: Literal["none", "channel", "token"]
    smear_gate_init: Annotated[float, Range(-MOST_STORED, MOST_STORED)]
    bos_mask: bool
    bigram_buckets: Natural
    bigram_dim: Positive
    bigram_table_std: Annotated[float, Range(0, MOST_STORED)]
    bigram_proj_gain: PositiveFloat
    value_embedding_dim: Positive
    value_embedding_layers: tuple[int, ...]
    value_residual: bool
    hidden_gain: bool
    head_gate: Literal["none", "doubled", "dense", "sparse"]
    head_gate_scale: PositiveFloat

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def orders(self) -> tuple[Order, ...]:
        """The layer order of each phase of training; the first is every layer once."""
        return (tuple(range(self.layers)), *(phase.order for phase in self.recurrence))

    def encoder(self, order: Order) -> Order:
        """Return the layers of `order` whose outputs are kept for skips: its first half.

        Unless repeats take part in skips, it is the first half of the layers' first runs.
        """
        runs = order if self.repeat_skips else tuple(dict.fromkeys(order))
        return runs[: len(runs) // 2]

    @property
    def skip_count(self) -> int:
        """Rows of skip weights: one per decoder layer that has an encoder output to pop."""
        if self.skip_rows is not None:
            return self.skip_rows
        return max(len(self.encoder(order)) for order in self.orders)

    @property
    def slots(self) -> int:
        """Rows of scales, mixes and gains: one per layer, or per position in the longest order."""
        return max(map(len, self.orders)) if self.virtual_scalars else self.layers

    def phase_at(self, fraction: float, step: int) -> int:
        """Return the phase (an index into `orders`) that is active at a point of training."""
        point = fraction if self.recurrence_unit == "fraction" else step
        return sum(phase.at <= point for phase in self.recurrence)

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the fields together."""
        if self.width % self.heads:
            yield "heads", f"must divide `width`: {self.heads} does not divide {self.width}"
        if self.heads % self.kv_heads:
            yield "kv_heads", f"must divide `heads`: {self.kv_heads} does not divide {self.heads}"
        if self.rope_dims % 2 or self.rope_dims > self.head_dim:
            limit = self.head_dim
            yield "rope_dims", f"must be even and at most the head size {limit}: {self.rope_dims}"
        yield from self._order_faults()
        yield from self._parallel_faults()
        for name in ("window_layers", "value_embedding_layers"):
            if any(layer not in range(self.layers) for layer in getattr(self, name)):
                yield name, f"must lie in 0..{self.layers - 1}"
        if self.bigram_buckets == 1:  # the last bucket is kept for positions that have no past
            yield "bigram_buckets", "must be 0 or at least 2"
        for name, reads_channels in (
            ("head_gate", self.head_gate in ("doubled", "sparse")),
            ("smear", self.smear == "token"),
        ):
            if reads_channels and self.width < GATE_CHANNELS:
                kind = getattr(self, name)
                yield name, f"{kind} needs a `width` of at least {GATE_CHANNELS}: {self.width}"

    def _parallel_faults(self) -> Iterator[Fault]:
        if self.parallel == "none":
            return
        start = self.parallel_start
        encoded = (layer for order in self.orders for layer in self.encoder(order))
        first = 1 + max(encoded, default=-1)
        if not first <= start < self.layers:
            expected = f"lie in the decoder, {first}..{self.layers - 1}"
            yield (
                "parallel_start",
                f"must {expected} (the second half of each order), found {start}",
            )
        parted = [[layer >= start for layer in order] for order in self.orders]
        if self.parallel != "single" and any(lanes != sorted(lanes) for lanes in parted):
            yield "recurrence", f"returns to layers before {start}, but lanes once parted stay so"

    def _order_faults(self) -> Iterator[Fault]:
        for i, phase in enumerate(self.recurrence):
            missing = sorted(set(phase.order) - set(range(self.layers)))
            unused = sorted(set(range(self.layers)) - set(phase.order))
            if missing:
                yield f"recurrence.{i}.order", f"names layers that do not exist: {missing}"
            if unused:
                yield f"recurrence.{i}.order", f"leaves out layers: {unused}"
            if len(phase.order) > LONGEST_ORDER:
                yield f"recurrence.{i}.order", f"must name at most {LONGEST_ORDER} layers"
            if self.recurrence_unit == "fraction" and phase.at >= 1:
                yield f"recurrence.{i}.at", f"is a fraction and must be below 1, found {phase.at}"
        for first, second in itertools.pairwise(self.recurrence):
            if second.at < first.at:
                yield (
                    "recurrence",
                    f"must be in rising order of `at`: {first.at} before {second.at}",
                )

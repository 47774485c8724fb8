"""Parameters of the evaluators."""

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
class MixtureConfig:
    """What counts of the scored text add to the network; see recipes/base.yaml."""

    kind: Literal["none", "ngram", "blend", "tilt"]
    contexts: tuple[Positive, ...]
    min_count: Positive
    primer_tokens: Natural
    weight: BelowOne
    min_share: Share
    beta: Annotated[float, Range(0, most=80)]  # float32 holds e^beta

    @property
    def training_tokens(self) -> int:
        """The training tokens that an evaluation reads."""
        return 0 if self.kind == "none" else self.primer_tokens

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the fields together."""
        if not self.contexts:
            yield "contexts", "must name at least one length"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingConfig:
    """The sliding-window evaluation; units and meanings are in recipes/base.yaml."""

    mode: Literal["strided", "documents", "windowed"]
    window: Positive
    stride: Positive
    row_windows: Annotated[int, Range(2)]  # the first window of a row is context
    batch_windows: Positive
    max_tokens: Positive | None
    token_mask: bool
    mixture: MixtureConfig

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the fields together."""
        if self.stride > self.window:
            yield "stride", f"must lie in 1..window ({self.window}), found {self.stride}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters and the AdamW that trains them; see recipes/base.yaml."""

    targets: tuple[Literal["q", "k", "v", "o", "mlp", "head"], ...]
    rank: Positive
    alpha: PositiveFloat
    seed: Seed
    lr: NaturalFloat
    beta1: BelowOne
    beta2: BelowOne
    eps: PositiveFloat
    decay: NaturalFloat
    init_std: PositiveFloat | None
    per_layer: bool
    last_layers: Positive | None

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the fields together."""
        if not self.targets or len(set(self.targets)) < len(self.targets):
            yield "targets", "must name at least one projection, and none twice"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """Adaptation along the stream; see recipes/base.yaml."""

    reset_batches: Natural
    learn: Literal["scored", "window"]
    temperature: PositiveFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentsConfig:
    """Adaptation to each document by itself; see recipes/base.yaml."""

    order: Literal["stream", "length"]
    batch_documents: Positive
    chains: Positive
    chunk_tokens: Positive
    last_window: Literal["fixed", "full"]
    warm_a: bool
    idle_decay: bool
    prefix_documents: Natural
    phases: Natural
    repeat_bos: bool

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the fields together."""
        if self.prefix_documents < self.phases:
            yield "prefix_documents", f"must be at least `phases`, {self.phases}"
        by_length = {"warm_a": self.warm_a, "last_window": self.last_window == "full"}
        for name, used in by_length.items():
            if self.order == "stream" and used:
                yield (
                    name,
                    "needs `order: length`: by it a score depends on the lengths of documents that "
                    "`order: stream` has not read yet",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class TttConfig:
    """The score-first adaptive evaluation; units and meanings are in recipes/base.yaml."""

    mode: Literal["none", "sgd", "lora_stream", "lora_documents"]
    window: Positive
    stride: Positive
    batch_windows: Positive
    max_tokens: Positive | None
    token_mask: bool
    chunk_tokens: Positive
    epochs: Positive
    batch_sequences: Positive
    lr: NaturalFloat
    momentum: BelowOne
    clip_norm: NaturalFloat
    adapter: LoraConfig
    stream: StreamConfig
    documents: DocumentsConfig
    mixture: MixtureConfig

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the fields together."""
        if self.stride > self.window:
            yield "stride", f"must lie in 1..window ({self.window}), found {self.stride}"
        elif self.window % self.stride:
            yield "stride", "must divide `window`, or a chunk's scores would spill over its edge"
        elif self.chunk_tokens < self.window:
            yield "chunk_tokens", "must be at least `window`, the length of a training sequence"
        elif self.mode == "sgd" and self.chunk_tokens % self.window:
            yield "chunk_tokens", "must be a multiple of `window` in mode sgd"
        elif self.mode == "lora_documents" and self.documents.chunk_tokens > self.window:
            yield "documents", "must have chunks of at most `window` tokens"
        elif self.adapter.last_layers and 2 * self.documents.chunk_tokens > self.window:
            # in a document's first window what lies below is what one pass makes of it, which the
            # probe of the second chunk goes by
            yield "documents", "must have two chunks in a window where `adapter.last_layers` is set"
        if self.documents.idle_decay and self.adapter.beta1:
            yield "documents", "`idle_decay` needs `adapter.beta1` 0: momentum would move idle rows"

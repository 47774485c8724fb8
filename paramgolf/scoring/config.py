"""Parameters of the evaluators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureConfig:
    """What counts of the scored text add to the network; see recipes/base.yaml."""

    kind: Literal["none", "ngram", "tilt"]
    contexts: tuple[int, ...]
    min_count: int
    weight: float
    min_share: float
    beta: float

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the fields together."""
        if min(self.contexts, default=0) < 1 or self.min_count < 1:
            yield "contexts` must name at least one length, each at least 1, as must `min_count`"
        if not (0 <= self.weight < 1 and 0 <= self.min_share <= 1 and self.beta >= 0):
            yield "weight` and `min_share` must lie in 0..1, and `beta` must be 0 or more"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingConfig:
    """The sliding-window evaluation; units and meanings are in recipes/base.yaml."""

    mode: Literal["strided", "documents", "windowed"]
    window: int
    stride: int
    row_windows: int
    batch_windows: int
    max_tokens: int | None
    mixture: MixtureConfig

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the fields together."""
        if not 1 <= self.stride <= self.window:
            yield f"stride` must lie in 1..window ({self.window}), found {self.stride}"
        if self.batch_windows < 1:
            yield "batch_windows` must be at least 1"
        if self.row_windows < 2:
            yield "row_windows` must be at least 2: the first window of a row is context"
        if self.max_tokens is not None and self.max_tokens < 1:
            yield f"max_tokens` must be at least 1, or null for all, found {self.max_tokens}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters and the AdamW that trains them; see recipes/base.yaml."""

    targets: tuple[Literal["q", "k", "v", "o", "mlp", "head"], ...]
    rank: int
    alpha: float
    seed: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    decay: float
    reset_chunks: int

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the fields together."""
        if not self.targets or len(set(self.targets)) < len(self.targets):
            yield "targets` must name at least one place, and none twice"
        if self.rank < 1 or self.reset_chunks < 0:
            yield "rank` must be at least 1, and `reset_chunks` 0 or more"
        if self.lr < 0 or self.eps <= 0 or self.decay < 0:
            yield "lr` and `decay` must be 0 or more, and `eps` above 0"
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            yield "beta1` and `beta2` must lie in 0..1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortChunk:
    """Batches of documents of at most `document_tokens` are scored in chunks of `chunk_tokens`."""

    document_tokens: int
    chunk_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentsConfig:
    """Adaptation to each document by itself; see recipes/base.yaml."""

    order: Literal["stream", "length"]
    batch_documents: int
    lanes: int
    chunk_tokens: int
    short_chunks: tuple[ShortChunk, ...]
    warm_a: bool
    prefix_documents: int
    phases: int

    @property
    def longest_chunk(self) -> int:
        """The tokens of the longest chunk."""
        return max(self.chunk_tokens, *(rule.chunk_tokens for rule in self.short_chunks), 0)

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the fields together."""
        if min(self.batch_documents, self.lanes, self.chunk_tokens) < 1:
            yield "batch_documents`, `lanes` and `chunk_tokens` must be at least 1"
        if min((rule.chunk_tokens for rule in self.short_chunks), default=1) < 1:
            yield "short_chunks` must have `chunk_tokens` of at least 1"
        lengths = [rule.document_tokens for rule in self.short_chunks]
        if lengths != sorted(set(lengths)):
            yield "short_chunks` must be in rising order of `document_tokens`"
        if self.phases < 0 or self.prefix_documents < self.phases:
            yield "phases` must be 0 or more, and `prefix_documents` at least as many"
        if self.order == "stream" and (self.warm_a or self.short_chunks):
            found = "warm_a" if self.warm_a else "short_chunks"
            yield (
                f"{found}` needs `order: length`: by it a score depends on the lengths of "
                "documents that `order: stream` has not read yet"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptConfig:
    """The score-first adaptive evaluation; units and meanings are in recipes/base.yaml."""

    mode: Literal["none", "sgd", "lora_stream", "lora_documents"]
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
    adapter: AdapterConfig
    documents: DocumentsConfig
    mixture: MixtureConfig

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
        elif self.mode == "lora_documents" and self.documents.longest_chunk > self.window:
            yield "documents` must have chunks of at most `window` tokens"
        if self.max_tokens is not None and self.max_tokens < 1:
            yield f"max_tokens` must be at least 1, or null for all, found {self.max_tokens}"
        if self.lr < 0 or self.clip_norm < 0 or not 0 <= self.momentum < 1:
            yield "lr` and `clip_norm` must be 0 or more, and `momentum` in 0..1"

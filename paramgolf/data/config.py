"""Parameters of download, retokenize and audit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from paramgolf.data.special_tokens import Transform
from paramgolf.schema import Fault, Natural, Positive, Range, Share


@dataclass(frozen=True, slots=True, kw_only=True)
class HubConfig:
    """What to fetch from Hugging Face; units and meanings are in recipes/base.yaml."""

    repository: str
    revision: str
    kind: Literal["shards", "documents"]
    variant: str
    train_shards: Positive
    documents_file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where the text comes from; units and meanings are in recipes/base.yaml."""

    source: Literal["sample", "files", "hub"]
    files: tuple[str, ...]
    validation_files: tuple[str, ...]
    text_field: str
    on_error: Literal["stop", "skip"]
    validation_documents: Natural
    max_documents: Positive | None
    hub: HubConfig

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the fields together."""
        if self.source == "files" and not self.files:
            yield "files", "must name at least one path when data.source is `files`"
        if self.validation_documents < 1 and not self.validation_files:
            yield "validation_documents", "must be at least 1 where `validation_files` is empty"
        published = self.source == "hub" and self.hub.kind == "shards"
        if published and (self.validation_files or self.max_documents is not None):
            yield (
                "validation_files",
                "and `data.max_documents` must be empty where data.hub.kind is `shards`; "
                "data.hub.train_shards says how many to take",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """How text becomes tokens; units and meanings are in recipes/base.yaml."""

    source: Literal["train", "file", "published"]
    path: str | None
    transform: Transform
    vocab_size: Annotated[int, Range(300, 2**16)]  # tokens are uint16
    training_bytes: Positive
    shard_tokens: Annotated[int, Range(1, 2**31 - 1)]  # a shard's header holds it as an int32

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the fields together."""
        if self.source == "file" and not self.path:
            yield "path", "must name a tokenizer model when tokenizer.source is `file`"
        foreign = self.source == "file" and str(self.path).endswith((".json", ".txt"))
        if self.transform != "none" and foreign:
            yield "transform", "must be none for a tokenizer that is not a SentencePiece model"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """What the audit tolerates; units and meanings are in recipes/base.yaml."""

    allowed_overlap: Natural
    near_copy_share: Share
    allowed_near_copies: Share

"""Documents that stand in training and in validation alike, found by exact hash (rule R10)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from paramgolf.data.documents import read_documents
from paramgolf.data.manifests import RawManifest, TextManifest
from paramgolf.data.shards import ShardStream, split_documents
from paramgolf.data.token_set import TokenSet


@dataclass(frozen=True, slots=True)
class Overlap:
    """What training text shares with validation text."""

    documents_train: int
    documents: int
    """Training documents that are validation documents too."""
    first: str | None
    """The first of them, in training and in validation."""


def overlap(tokens: TokenSet, source: RawManifest, raw: Path) -> Overlap:
    """Compare the splits by the SHA-256 of each document: of its text, or of published tokens.

    Only the hashes of the validation documents are held in memory.
    """
    if isinstance(source, TextManifest):
        return compare(_texts(raw / source.val.file), _texts(raw / source.train.file))
    return compare(_tokens(tokens.val()), _tokens(tokens.train()))


def compare(val: Iterable[tuple[str, bytes]], train: Iterable[tuple[str, bytes]]) -> Overlap:
    """Count the contents of `train` that stand in `val`; both are streams of (name, content)."""
    names = {hashlib.sha256(content).digest(): name for name, content in val}
    total = shared = 0
    first = None
    for name, content in train:
        total += 1
        twin = names.get(hashlib.sha256(content).digest())
        if twin is not None:
            shared += 1
            first = first or f"{name} (training) = {twin} (validation)"
    return Overlap(total, shared, first)


def _texts(path: Path) -> Iterator[tuple[str, bytes]]:
    for document in read_documents(path):
        yield document.name, document.text.encode()


def _tokens(stream: ShardStream) -> Iterator[tuple[str, bytes]]:
    for index, (_, ids) in enumerate(split_documents(stream)):
        yield f"document {index}", ids.tobytes()

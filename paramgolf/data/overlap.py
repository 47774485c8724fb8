"""Documents that stand in training and in validation alike, found by exact hash (rule R10)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramgolf.data.documents import read_documents
from paramgolf.data.shards import split_documents
from paramgolf.data.token_set import TokenSet


@dataclass(frozen=True, slots=True)
class Overlap:
    """What training text shares with validation text."""

    documents_train: int
    documents: int
    """Training documents that are validation documents too."""
    first: str | None
    """The first of them, in training and in validation."""


def overlap(tokens: TokenSet, source: dict[str, Any], raw: Path) -> Overlap:
    """Compare the splits by the SHA-256 of each document: of its text, or of published tokens.

    Only the hashes of the validation documents are held in memory.
    """
    if source["kind"] == "documents":
        streams = {split: _texts(raw / source[split]["file"]) for split in ("val", "train")}
    else:
        streams = {"val": _tokens(tokens, "val"), "train": _tokens(tokens, "train")}
    return compare(streams["val"], streams["train"])


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


def _tokens(tokens: TokenSet, split: str) -> Iterator[tuple[str, bytes]]:
    stream = tokens.val() if split == "val" else tokens.train()
    for index, (_, ids) in enumerate(split_documents(stream, tokens.bos)):
        yield f"document {index}", ids.tobytes()

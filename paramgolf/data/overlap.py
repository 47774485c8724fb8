"""What training text and validation text have in common (rule R5): equal documents, near copies."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paramgolf.data.documents import parse, read_lines
from paramgolf.data.manifests import DocumentsFile, RawManifest, TextManifest
from paramgolf.data.near_copies import MOST_HELD, SEPARATOR, Shingles, TokenLetters, letters
from paramgolf.data.shards import BLOCK_TOKENS, ShardStream, whole_documents
from paramgolf.data.special_tokens import BOS
from paramgolf.data.token_set import TokenSet
from paramgolf.data.tokenizer.encode import batches, threaded_map
from paramgolf.data.tokenizer.text_tokenizer import TextTokenizer
from paramgolf.progress import track

BATCH_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Part:
    """Some documents of a split."""

    names: Sequence[str]
    contents: Sequence[bytes]
    """What is the same in equal documents: the text, or the tokens."""
    letters: np.ndarray
    """uint8 [n]: what near copies are found by, near_copies.SEPARATOR around each document."""


@dataclass(frozen=True, slots=True)
class Split:
    """A split that is read in parts: `read` makes one of an item, and may run in any thread."""

    items: Iterable[Any]
    read: Callable[[Any], Part]
    total: int
    """Of the items, about."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """What training text shares with validation text."""

    documents_train: int
    documents: int
    """Training documents that are validation documents too."""
    first: str | None
    """The first of them, in training and in validation."""
    names: Sequence[str]
    """Of the validation documents."""
    shares: np.ndarray
    """float64 [validation documents]: of a document's shingles, those that training holds."""
    sampled_every: int
    """One shingle in so many was looked at."""


def overlap(
    tokens: TokenSet, tokenizer: TextTokenizer, source: RawManifest, raw: Path, val_bytes: int
) -> Overlap:
    """Compare the splits by their text, or of published shards by their tokens.

    `val_bytes`, the size of the validation text, sets how shingles are sampled. Memory holds hashes
    of the validation documents and shingles, and some blocks of training text.
    """
    every = max(1, -(-val_bytes // MOST_HELD))
    if isinstance(source, TextManifest):
        return compare(_texts(raw, source.val), _texts(raw, source.train), every)
    own = [tokenizer.decode(np.array([BOS, i], np.uint16)) for i in range(tokens.vocab_size)]
    table = TokenLetters(own, BOS)
    return compare(_tokens(tokens.val(), table), _tokens(tokens.train(), table), every)


def compare(val: Split, train: Split, every: int) -> Overlap:
    """Look up all of `train` in `val`, whole documents and one shingle in `every`."""
    names: list[str] = []
    known: dict[bytes, str] = {}

    def val_letters() -> Iterator[np.ndarray]:
        for part in map(val.read, val.items):
            names.extend(part.names)
            known.update(zip(map(_digest, part.contents), part.names, strict=True))
            yield part.letters

    shingles = Shingles(val_letters(), every)

    def look_up(item: Any) -> tuple[int, list[str]]:
        part = train.read(item)
        shingles.meet(part.letters)
        twins = zip(part.names, map(known.get, map(_digest, part.contents)), strict=True)
        equal = [f"{name} (training) = {twin} (validation)" for name, twin in twins if twin]
        return len(part.names), equal

    documents, shared, first = 0, 0, None
    looked_up = threaded_map(look_up, train.items)
    for count, equal in track(looked_up, "training against validation", total=train.total):
        documents += count
        shared += len(equal)
        first = first or next(iter(equal), None)
    return Overlap(documents, shared, first, names, shingles.shares(), every)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _texts(raw: Path, file: DocumentsFile) -> Split:
    lines = read_lines(raw / file.file)
    return Split(batches(lines, BATCH_BYTES), _text_part, -(-file.bytes // BATCH_BYTES))


def _text_part(lines: Sequence[bytes]) -> Part:
    documents = [parse(line) for line in lines]
    texts = [document.text.encode() for document in documents]
    joined = SEPARATOR.join([b"", *texts, b""])
    return Part([d.name for d in documents], texts, np.frombuffer(letters(joined), np.uint8))


def _tokens(stream: ShardStream, table: TokenLetters) -> Split:
    read = functools.partial(_token_part, table)
    return Split(whole_documents(stream), read, -(-len(stream) // BLOCK_TOKENS))


def _token_part(table: TokenLetters, block: tuple[int, np.ndarray]) -> Part:
    start, ids = block
    begins = np.flatnonzero(ids == BOS)
    contents = [document.tobytes() for document in np.split(ids, begins[1:])]
    return Part([f"token {start + i}" for i in begins.tolist()], contents, table.of(ids))

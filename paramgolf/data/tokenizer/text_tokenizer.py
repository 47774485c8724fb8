"""Text to tokens and back by any kind of tokenizer, with the bytes that each token stands for.

A kind (SentencePiece, Hugging Face JSON, vocabulary file) gives ids of its own; here BOS comes
before them, as token 1 of every shard, and the rules hold that all kinds share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from paramgolf.data.special_tokens import BOS, Transform
from paramgolf.data.tokenizer.byte_counts import at_most
from paramgolf.data.tokenizer.vocabulary_json import JsonVocabulary
from paramgolf.data.tokenizer.vocabulary_sentencepiece import SentencePieceVocabulary
from paramgolf.data.tokenizer.vocabulary_text import TextVocabulary

Tokens = tuple[np.ndarray, np.ndarray | None]


class Vocabulary(Protocol):
    """What a kind of tokenizer gives; ids are its own, without BOS."""

    size: int
    bos: int
    rule: str

    def encode(self, texts: list[str], *, count_bytes: bool) -> Iterator[Tokens]:
        """Yield the ids of each text, integers [n], and where asked their bytes, integers [n]."""

    def decode(self, ids: np.ndarray) -> bytes:
        """Return the text in UTF-8; unknown tokens give nothing."""

    def excesses(self, ids: np.ndarray) -> dict[int, str]:
        """Return the bytes by which each known accounting fault would count `ids` too high."""


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """A tokenizer as data/tokens holds it."""

    path: str
    """The ending tells the kind: .json Hugging Face, .txt a vocabulary file, else SentencePiece."""
    transform: Transform


class TextTokenizer:
    """Encodes documents as the shards hold them: BOS, then the tokens of the text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.size = vocabulary.size
        self.own_bos = vocabulary.bos
        self.rule = vocabulary.rule
        self._vocabulary = vocabulary
        self._exchange = _exchange(vocabulary.size, vocabulary.bos)

    def encode(self, texts: list[str], *, count_bytes: bool) -> Iterator[Tokens]:
        """Yield tokens uint16 [n] of each text, BOS first, and their bytes uint16 [n] where asked.

        The bytes of a document never sum to more than those of its text.
        """
        encoded = self._vocabulary.encode(texts, count_bytes=count_bytes)
        for text, (ids, counts) in zip(texts, encoded, strict=True):
            tokens = np.insert(self._exchange[ids], 0, BOS)
            if counts is not None:
                counts = np.insert(at_most(counts, len(text.encode())), 0, 0)
            yield tokens, counts

    def decode(self, tokens: np.ndarray) -> bytes:
        """Return the text of one document's tokens in UTF-8; `tokens` begin with BOS."""
        return self._vocabulary.decode(self._own(tokens))

    def known_fault(self, tokens: np.ndarray, excess: int) -> str:
        """Name the published accounting fault that explains an excess of bytes; "" if none does."""
        return self._vocabulary.excesses(self._own(tokens)).get(excess, "") if excess else ""

    def _own(self, tokens: np.ndarray) -> np.ndarray:
        own: np.ndarray = self._exchange[tokens[1:]]
        return own


def open_tokenizer(file: TokenizerFile) -> TextTokenizer:
    """Open a tokenizer; one whose bytes cannot be counted is refused."""
    path = Path(file.path)
    if path.suffix == ".json":
        return TextTokenizer(JsonVocabulary(path))
    if path.suffix == ".txt":
        return TextTokenizer(TextVocabulary(path))
    return TextTokenizer(SentencePieceVocabulary(path, file.transform))


def _exchange(vocab_size: int, own: int) -> np.ndarray:
    """Return uint16 [vocab_size] that maps ids of a tokenizer to those of the shards, and back.

    `own`, the tokenizer's BOS, becomes 1 and its 1 becomes `own`; all others stay.
    """
    ids = np.arange(vocab_size, dtype=np.uint16)
    ids[[BOS, own]] = ids[[own, BOS]]
    return ids

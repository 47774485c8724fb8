"""Pieces across the bounds of words, the second stage of a tokenizer (SuperBPE, arXiv 2503.13423).

SentencePiece merges within words, and within letters or punctuation. In a small vocabulary its last
merges are rare words, while `of the`, `, and` or `'s` take two tokens each time. Here the last
merges of a trained model give way to the pairs of tokens that come most often, whatever stands
between them. What was merged before stays, and so does the file's format: its encoder merges any
two neighbors whose joint text is a piece, the piece of the highest score first.

Bytes, single digits and control tokens stay by themselves. Of the marks of a case transform, TITLE
and ALL_CAPS may end a piece, as in a full stop with the capital that follows it: what holds a
literal mark so never has it in a longer piece, for ESCAPE is merged with nothing, and the count of
bytes stays a table of tokens (data.caseops).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from paramgolf.data.special_tokens import LAST_MARKS, MARKS
from paramgolf.errors import ParamGolfError
from paramgolf.progress import track

ModelProto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
ENOUGH_BYTES = 20_000_000  # of text: the thousandth pair comes some 200 times in it
LONGEST = 32  # characters of a piece
# A round merges all pairs that come so often beside the most frequent one: counts are taken once a
# round, for a text's pairs take a second to count.
ROUND_SHARE = 0.7


def with_superwords(model: bytes, texts: Iterable[str], count: int) -> bytes:
    """Return a BPE model whose last `count` merges are pieces across words, as `texts` have them.

    Too few merges or too little text for so many is a ParamGolfError.
    """
    whole, words = ModelProto(), ModelProto()
    whole.ParseFromString(model)
    words.ParseFromString(model)
    normal, user_defined = (
        ModelProto.SentencePiece.Type.Value(name) for name in ("NORMAL", "USER_DEFINED")
    )
    merges = [i for i, p in enumerate(whole.pieces) if p.type == normal and len(p.piece) > 1]
    if count >= len(merges):
        raise ParamGolfError(
            "the tokenizer has too few pieces to give some to superwords",
            where="tokenizer.superwords",
            expected=f"fewer than {len(merges)}",
            found=count,
            fix="lower tokenizer.superwords, or raise tokenizer.vocab_size",
        )
    given_up = merges[-count:]  # they stand in the order of merging
    for i in reversed(given_up):
        del words.pieces[i]
    for piece in (*whole.pieces, *words.pieces):
        if piece.type == user_defined and piece.piece in LAST_MARKS:
            piece.type = normal  # the encoder merges no symbol of a user's
    alphabet = _Alphabet(words.pieces)
    pairs = _merged_pairs(_encode(words.SerializeToString(), texts), alphabet)
    found = list(itertools.islice(track(pairs, "superwords", total=count), count))
    if len(found) < count:
        raise ParamGolfError(
            "too few pairs of tokens come twice in the text",
            where="tokenizer.superwords",
            expected=count,
            found=len(found),
            fix="lower tokenizer.superwords, raise tokenizer.training_bytes, or give more text",
        )
    for i, text in zip(given_up, found, strict=True):
        whole.pieces[i].piece = text
    written: bytes = whole.SerializeToString()
    return written


def _encode(model: bytes, texts: Iterable[str]) -> np.ndarray:
    """Return the tokens of the texts, int64, BOS before each."""
    encoder = sentencepiece.SentencePieceProcessor(model_proto=model)
    return np.concatenate([np.array([encoder.bos_id(), *encoder.encode(text)]) for text in texts])


class _Alphabet:
    """The texts of tokens, and which of them others may be merged with, to the right or left."""

    def __init__(self, pieces: Iterable[Any]) -> None:
        self.texts = [piece.piece for piece in pieces]
        normal = ModelProto.SentencePiece.NORMAL
        mergeable = [p.type == normal and not p.piece.isdigit() for p in pieces]
        self.ends = np.array(mergeable)
        self.begins = self.ends & np.array([text[-1] not in MARKS for text in self.texts])

    def add(self, texts: Iterable[str]) -> None:
        """Add merged tokens."""
        texts = [*texts]
        self.texts += texts
        self.ends = np.append(self.ends, [True] * len(texts))
        self.begins = np.append(self.begins, [text[-1] not in MARKS for text in texts])


def _merged_pairs(tokens: np.ndarray, alphabet: _Alphabet) -> Iterator[str]:
    """Yield the joint texts of the pairs of tokens to be merged, as often as they come.

    The text is merged along, so that a merged pair meets others.
    """
    while True:
        places = np.flatnonzero(alphabet.begins[tokens[:-1]] & alphabet.ends[tokens[1:]])
        size = len(alphabet.texts)
        codes, which, counts = np.unique(
            tokens[places] * size + tokens[places + 1], return_inverse=True, return_counts=True
        )
        chosen = _round(codes, counts, alphabet.texts)
        if not chosen:
            return
        yield from chosen.values()
        merged = np.full(len(codes), -1)
        merged[[*chosen]] = np.arange(size, size + len(chosen))
        alphabet.add(chosen.values())
        tokens = _merge(tokens, places, merged[which])


def _round(codes: np.ndarray, counts: np.ndarray, pieces: list[str]) -> dict[int, str]:
    """Return which pairs, left * V + right, are merged next, by their index, and their texts.

    No token ends one of them and begins another, so that no two compete for a place in the text.
    """
    known = {*pieces}
    chosen: dict[int, str] = {}
    begins, ends = set[int](), set[int]()
    fewest = 2.0
    for index in np.argsort(-counts, kind="stable").tolist():
        if counts[index] < fewest:
            break
        left, right = divmod(int(codes[index]), len(pieces))
        text = pieces[left] + pieces[right]
        if left in ends or right in begins or text in known or len(text) > LONGEST:
            continue
        fewest = max(fewest, ROUND_SHARE * counts[index]) if not chosen else fewest
        chosen[index] = text
        known.add(text)
        begins.add(left)
        ends.add(right)
    return chosen


def _merge(tokens: np.ndarray, places: np.ndarray, merged: np.ndarray) -> np.ndarray:
    """Return the tokens with merged[i] for the pair at places[i], where that is not -1."""
    places, merged = places[merged >= 0], merged[merged >= 0]
    # of three equal tokens in a row the first two are merged
    numbers = np.arange(len(places))
    run_begins = np.diff(places, prepend=-2) != 1
    in_run = numbers - np.maximum.accumulate(np.where(run_begins, numbers, 0))
    places, merged = places[in_run % 2 == 0], merged[in_run % 2 == 0]
    tokens = tokens.copy()
    tokens[places] = merged
    return np.delete(tokens, places + 1)

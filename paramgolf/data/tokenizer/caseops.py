"""CaseOps: text in small letters with marks where capitals were, and these marks as tokens.

The transform (pg#1729). Only runs of ASCII letters change, each run as one word: two or more
letters, all capitals, are ALL_CAPS and the word in small letters; else a first capital is TITLE,
each later one CAP_NEXT. A mark that stands in the text itself is written after ESCAPE. So every
text has one transform, and `decode_case` gives every text back:

    The NASA mcDonald  ->  TITLE the, ALL_CAPS nasa, mc CAP_NEXT donald

Why it helps: `The`, `the` and `THE` share their tokens, and a mark is cheap to predict. Small and
capital ASCII letters have the same number of bytes, so a text and its transform differ by their
marks alone: bytes are counted on the transform's tokens, and a mark stands for none, save one that
an ESCAPE makes literal, which stands for its own 3 bytes.

With `before_space` the mark of a word that follows a space stands before that space. The word then
keeps the piece that begins with its space, and the vocabulary one form of most words, not two:

    of The NASA  ->  of TITLE" the" ALL_CAPS" nasa"
"""

from __future__ import annotations

import re

import numpy as np
import sentencepiece

from paramgolf.data.special_tokens import (
    ALL_CAPS,
    CAP_NEXT,
    ESCAPE,
    MARKS,
    TITLE,
    Transform,
)
from paramgolf.errors import ParamGolfError

# a run from its first capital on, whether letters stand before it or not; or a mark
_MARKED = re.compile(r"(?<![A-Za-z])([A-Z][A-Za-z]*)|([A-Z][A-Za-z]*)|([\ue001-\ue004])")
_CAPITAL = re.compile("[A-Z]")
_ENCODED = re.compile("\ue004(.?)|[\ue001\ue003]( ?[a-z]?)|\ue002( ?[a-z]*)")
# a mark that is no literal never follows a space otherwise: literals follow their ESCAPE
_SPACE_MARK = re.compile(" ([\ue001\ue002])")


def transformed(text: str, transform: Transform) -> str:
    """Return `text` as a tokenizer with `tokenizer.transform` sees it."""
    if transform == "none":
        return text
    return encode_case(text, before_space=transform == "caseops_before_space")


def encode_case(text: str, *, before_space: bool = False) -> str:
    """Return `text` in small ASCII letters, with marks where capitals were.

    A mark stands at the capital, or with `before_space` before the space in front of it.
    """
    encoded = _MARKED.sub(_mark, text)
    return _SPACE_MARK.sub(r"\1 ", encoded) if before_space else encoded


def decode_case(text: str) -> str:
    """Return the original of an encoded text; a mark that nothing follows stands for nothing."""
    return _ENCODED.sub(_unmark, text)


def _mark(match: re.Match[str]) -> str:
    word, tail, mark = match.groups()
    if mark:
        return ESCAPE + mark
    if tail:
        return _mark_capitals(tail)
    if len(word) == 1 or word[1:].islower():
        return TITLE + word.lower()
    if word.isupper():
        return ALL_CAPS + word.lower()
    return TITLE + word[0].lower() + _mark_capitals(word[1:])


def _mark_capitals(letters: str) -> str:
    return _CAPITAL.sub(lambda match: CAP_NEXT + match[0], letters).lower()


def _unmark(match: re.Match[str]) -> str:
    literal, letter, word = match.groups()
    return literal if literal is not None else (letter or word or "").upper()


MARK_BYTES = 3


def mark_ids(model: sentencepiece.SentencePieceProcessor) -> np.ndarray:
    """Return the ids [4] of TITLE, ALL_CAPS, CAP_NEXT and ESCAPE.

    A model that lacks one, or has a mark inside a longer piece, is refused, and so is one that was
    trained on text with capitals: its pieces with capitals would never occur.
    """
    pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    holders = [i for i, piece in enumerate(pieces) if any(mark in piece for mark in MARKS)]
    if sorted(pieces[i] for i in holders) != sorted(MARKS):
        raise ParamGolfError(
            "the tokenizer does not have the case marks U+E001 to U+E004 as four pieces",
            found=", ".join(ascii(pieces[i]) for i in holders) or "none of them",
            fix="set tokenizer.transform to none, or take a tokenizer made for caseops",
        )
    wasted = sum(bool(_CAPITAL.search(p)) for i, p in enumerate(pieces) if _is_text(model, i))
    if wasted:
        raise ParamGolfError(
            "the tokenizer was not trained on text in the case transform",
            expected="no piece with a capital ASCII letter, which such text does not have",
            found=f"{wasted} of {len(pieces)} pieces",
            fix="set tokenizer.source to train, or take a tokenizer made for caseops",
        )
    return np.array([pieces.index(mark) for mark in MARKS], dtype=np.uint16)


def _is_text(model: sentencepiece.SentencePieceProcessor, token: int) -> bool:
    return not (model.is_byte(token) or model.is_control(token) or model.is_unknown(token))


def count_marks(ids: np.ndarray, counts: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Return `counts` uint16 [n] of `ids` [n], with 0 for `marks` that are not literal."""
    is_mark = np.isin(ids, marks)
    result = np.where(is_mark, 0, counts).astype(np.uint16)
    if (ids == marks[3]).any():
        result[is_mark & escaped(ids, marks[3])] = MARK_BYTES
    return result


def escaped(ids: np.ndarray, escape: int) -> np.ndarray:
    """Return bool [n]: an ESCAPE that is not literal itself stands before the token.

    The first of consecutive ESCAPEs acts, the second is its literal, and so on: a token is literal
    where their number before it is odd.
    """
    positions = np.arange(len(ids))
    others = np.where(ids != escape, positions, -1)
    last_other = np.maximum.accumulate(np.concatenate([[-1], others]))[:-1]
    odd: np.ndarray = (positions - 1 - last_other) % 2 == 1
    return odd

"""Bytes of text that each token of a SentencePiece model stands for: what bits per byte divides by.

Bits per byte compares models of different tokenizers only if a text has the same bytes in all of
them: those of its UTF-8. So the counts of a document's tokens must add up to that, whatever the
pieces are; a rule that counts too much lowers the score by the same share.

The rule (pg#897, pg#1143, pg#1545, pg#1719): a control, unknown or unused token counts 0 bytes;
a byte-fallback token 1; any other its piece in UTF-8, where U+2581 stands for a space. A leading
space is counted once, by the token that carries it, save the one that the decoder takes away again
at the start of a document (the dummy prefix).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sentencepiece

from paramgolf.data.special_tokens import SPACE
from paramgolf.errors import ParamGolfError

MOST_BYTES = 2**16 - 1


@dataclass(frozen=True, slots=True)
class ByteTable:
    """Bytes of every token; the arrays are indexed by token id."""

    base: np.ndarray
    """uint16 [V]: bytes without a leading space."""
    leading: np.ndarray
    """bool [V]: the piece begins with a space."""
    begins: np.ndarray
    """bool [V]: control or unused; the next token begins a text."""
    fallback: np.ndarray
    """bool [V]: a single byte."""
    strips_first: bool
    """The decoder drops the space of a document's first piece."""

    def counts(self, tokens: np.ndarray) -> np.ndarray:
        """Return uint16 [n], the bytes of each of `tokens` [n]; the first begins a text."""
        spaces = self.leading[tokens]
        if self.strips_first:
            begins = np.empty(len(tokens), dtype=bool)
            begins[1:] = self.begins[tokens[:-1]]
            begins[:1] = True
            spaces = spaces & ~begins
        counts: np.ndarray = self.base[tokens] + spaces.astype(np.uint16)
        return counts


def byte_table(model: sentencepiece.SentencePieceProcessor) -> ByteTable:
    """Return the byte table of a model; one without the piece U+2581 is refused (pg#897)."""
    space = model.piece_to_id(SPACE)
    if model.id_to_piece(space) != SPACE:
        raise ParamGolfError(
            "the tokenizer has no piece U+2581 alone (pg#897)",
            expected="a piece for a single space",
            found="a space would be written as the 3 bytes of U+2581",
            fix="train the tokenizer with another vocab_size, or take another model",
        )
    ids = range(model.vocab_size())
    # an unknown token stands for some text, so that what follows it begins none
    begins = np.array([model.is_control(i) or model.is_unused(i) for i in ids])
    silent = begins | np.array([model.is_unknown(i) for i in ids])
    fallback = np.array([model.is_byte(i) for i in ids])
    pieces = [model.id_to_piece(i) for i in ids]
    leading = np.array([piece.startswith(SPACE) for piece in pieces]) & ~silent & ~fallback
    # a space inside a piece is 1 byte of text, not the 3 of U+2581
    sizes = [len(piece.removeprefix(SPACE).replace(SPACE, " ").encode()) for piece in pieces]
    base = as_counts(np.where(silent, 0, np.where(fallback, 1, sizes)))
    return ByteTable(base, leading, begins, fallback, model.decode([space]) == "")


def at_most(counts: np.ndarray, limit: int) -> np.ndarray:
    """Return `counts` as uint16, with what exceeds a sum of `limit` taken off the last ones.

    A normalization that lengthens a text would otherwise divide its bits by more bytes than it has.
    """
    totals = np.minimum(np.cumsum(counts, dtype=np.int64), limit)
    return as_counts(np.diff(totals, prepend=0))


def as_counts(counts: np.ndarray) -> np.ndarray:
    """Return counts of bytes as the uint16 of shards; a larger one would wrap to a small one."""
    if len(counts) and (most := int(counts.max())) > MOST_BYTES:
        raise ParamGolfError(
            "a token stands for more bytes of text than a shard can say",
            expected=f"at most {MOST_BYTES:,}",
            found=f"{most:,}",
            fix="cut the document (a run of blanks?), or take a tokenizer of shorter tokens",
        )
    return counts.astype(np.uint16)

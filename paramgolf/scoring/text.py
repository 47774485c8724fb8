"""The validation text as an evaluator sees it: tokens, and the bytes that each stands for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from paramgolf.data.special_tokens import BOS
from paramgolf.data.token_set import TokenSet, open_tokens
from paramgolf.errors import ParamGolfError

FIX = "make the tokens again: `dvc repro -f -s retokenize`"


@dataclass(frozen=True, slots=True)
class Text:
    """N targets: target j is tokens[j + 1], it follows inputs 0..j and stands for byte_counts[j].

    tokens: uint16 [N + 1]; byte_counts: uint16 [N]; bos: the token that begins each document.
    primer: uint16 [P], training tokens that a mixture counts before the text.
    """

    tokens: np.ndarray
    byte_counts: np.ndarray
    bos: int
    primer: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint16))

    def __len__(self) -> int:
        return len(self.byte_counts)

    def padded_tokens(self, length: int, device: torch.device) -> torch.Tensor:
        """Return the tokens, int32 [N + 1 + length], on `device`; the end is padding."""
        # int32: half of what the device would hold of int64, which embeddings ask for, row by row
        padded = np.pad(self.tokens.astype(np.int32), (0, length))
        return torch.from_numpy(padded).to(device)


def find_documents(text: Text) -> tuple[np.ndarray, np.ndarray]:
    """Return start and stop, int64 [n], of each document's targets, in the order of the text.

    A document's last target is the next one's BOS, which is predicted from the document.
    """
    start = np.flatnonzero(text.tokens[:-1] == text.bos)
    return start, np.append(start[1:], len(text))


def load_text(
    folder: str | Path, vocab_size: int, max_tokens: int | None, *, primer_tokens: int = 0
) -> Text:
    """Read the validation split of a folder of tokens, its first `max_tokens` targets at most.

    The first `primer_tokens` training tokens, as many as there are, become the primer.

    ParamGolfError: tokens of another vocabulary than the model's, byte counts that do not belong to
    the tokens, a stream that does not begin with a document, or fewer than 2 tokens.
    """
    token_set = open_tokens(folder)
    val, val_bytes = token_set.val(), token_set.val_bytes()
    if len(val) != len(val_bytes):
        raise ParamGolfError(
            "validation tokens and their byte counts differ in number",
            where=folder,
            expected=f"{len(val)} byte counts",
            found=len(val_bytes),
            fix=FIX,
        )
    # nothing predicts the first token, so there is one target less than there are tokens
    count = len(val) - 1 if max_tokens is None else min(len(val) - 1, max_tokens)
    if count < 1:
        raise ParamGolfError(
            "no validation text to score", where=folder, found=f"{len(val)} tokens", fix=FIX
        )
    text = Text(val.read(0, count + 1), val_bytes.read(1, count + 1), BOS)
    _check(text, token_set, vocab_size)
    return replace(text, primer=read_primer(token_set, primer_tokens))


def read_primer(token_set: TokenSet, count: int) -> np.ndarray:
    """Return the first `count` training tokens, uint16, or all where there are fewer."""
    train = token_set.train() if count else None
    return np.zeros(0, dtype=np.uint16) if train is None else train.read(0, min(count, len(train)))


def _check(text: Text, token_set: TokenSet, vocab_size: int) -> None:
    where = token_set.folder
    if token_set.vocab_size != vocab_size:
        raise ParamGolfError(
            "the model and the validation tokens have different vocabularies",
            where=where,
            expected=f"{vocab_size} tokens, as the package says",
            found=token_set.vocab_size,
            fix="score with the tokens that the model was trained on: `dvc repro`",
        )
    highest = int(text.tokens.max())
    if highest >= vocab_size:
        expected = f"ids below {vocab_size}"
        raise ParamGolfError(
            "a validation token is not in the vocabulary",
            where=where,
            expected=expected,
            found=highest,
            fix=FIX,
        )
    if text.tokens[0] != text.bos:
        raise ParamGolfError(
            "the validation text does not begin with a document",
            where=where,
            expected=f"the token {text.bos} (BOS) before each document",
            found=f"token {text.tokens[0]}",
            fix=FIX,
        )

"""Reading a SentencePiece model: for a vocabulary, and for the mask of an evaluation."""

from __future__ import annotations

from pathlib import Path

import sentencepiece

from paramgolf.errors import ParamGolfError
from paramgolf.files import file_size

READ = (
    "a SentencePiece model, a Hugging Face tokenizers file (tokenizer.json), or one token a line "
    "(.txt, docs/formats.md)"
)
FIX = (
    "convert it to a Hugging Face tokenizer.json, and set tokenizer.path to that; "
    "that of data/tokens is made by `dvc repro -f -s retokenize`"
)


def read_model(path: str | Path) -> sentencepiece.SentencePieceProcessor:
    """Read a SentencePiece model that has a BOS token; anything else is a ParamGolfError."""
    file_size(path, fix=FIX)
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.load(str(path))
        model.id_to_piece([*range(model.vocab_size())])
    except (RuntimeError, OSError, ValueError) as error:  # the last: a piece that is not UTF-8
        raise other_format(path, f"no SentencePiece model: {error}") from None
    if model.bos_id() < 0:
        fix = "take a model that was trained with a BOS token"
        raise ParamGolfError("the tokenizer has no BOS token", where=path, fix=fix)
    return model


def other_format(path: str | Path, found: str) -> ParamGolfError:
    """Return the error for a tokenizer's file that no reader is for."""
    what = "a tokenizer of a format that is not read here"
    return ParamGolfError(what, where=path, expected=READ, found=found, fix=FIX)

"""Reading a SentencePiece model: for a vocabulary, and for the mask of an evaluation."""

from __future__ import annotations

from pathlib import Path

import sentencepiece

from paramgolf.errors import ParamGolfError


def read_model(path: str | Path) -> sentencepiece.SentencePieceProcessor:
    """Read a SentencePiece model that has a BOS token; anything else is a ParamGolfError."""
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.load(str(path))
        model.id_to_piece([*range(model.vocab_size())])
    except (RuntimeError, OSError, ValueError) as error:  # the last: a piece that is not UTF-8
        raise ParamGolfError(
            "a tokenizer of a format that is not read here",
            where=path,
            found=f"no SentencePiece model: {error}",
            fix="give another tokenizer.path; for that of data/tokens `dvc repro -f -s retokenize`",
        ) from None
    if model.bos_id() < 0:
        fix = "take a model that was trained with a BOS token"
        raise ParamGolfError("the tokenizer has no BOS token", where=path, fix=fix)
    return model

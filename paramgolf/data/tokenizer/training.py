"""Training a SentencePiece BPE model on a bounded draw of the training text.

The trainer's options are those of the published tokenizers (BPE, byte fallback, single digits,
character coverage 0.999, pad/bos/eos/unk = 0..3, no dummy prefix) but for the normalization: the
published nmt_nfkc rewrites the text, ours is the identity, so that decoding gives every byte back
(but for U+2581, SentencePiece's sign for a space, which comes back as a space).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import sentencepiece

from paramgolf.data.documents import parse
from paramgolf.errors import ParamGolfError

OPTIONS: dict[str, Any] = {
    "model_type": "bpe",
    "character_coverage": 0.999,
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    # a document is one sentence here; the default would drop those above 4192 bytes
    "max_sentence_length": 2**30,
    "num_threads": 1,
    "minloglevel": 2,
}


def draw_texts(lines: Iterable[bytes], *, total_bytes: int, limit_bytes: int) -> Iterator[str]:
    """Yield texts of about `limit_bytes` in all, spread evenly over a stream of `total_bytes`.

    A document is taken whenever the draw lags behind its share of the stream; with a limit at or
    above the total, all are. `lines` are documents as JSON; their sizes stand in for the texts'.
    """
    share = min(1.0, limit_bytes / total_bytes)
    passed = taken = 0
    for line in lines:
        passed += len(line)
        if taken < passed * share:
            taken += len(line)
            yield parse(line).text[:limit_bytes]


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, symbols: str = "") -> bytes:
    """Train a BPE model and return it serialised; too little text for `vocab_size` is an error.

    Each character of `symbols` becomes a token of its own, from 4 on, and never part of another.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            user_defined_symbols=[*symbols],
            **OPTIONS,
        )
    except RuntimeError as error:
        raise ParamGolfError(
            f"cannot train a tokenizer of {vocab_size} pieces on this text",
            found=str(error).strip().splitlines()[-1],
            fix="lower tokenizer.vocab_size, raise tokenizer.training_bytes, or give more text",
        ) from None
    return model.getvalue()

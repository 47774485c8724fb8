"""A SentencePiece model as a vocabulary, of plain text or of text in the case transform."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece

from paramgolf.data.manifests import TABLE_RULE
from paramgolf.data.special_tokens import MARKS, Transform
from paramgolf.data.tokenizer.byte_counts import byte_table
from paramgolf.data.tokenizer.caseops import (
    MARK_BYTES,
    count_marks,
    decode_case,
    mark_ids,
    transformed,
)
from paramgolf.data.tokenizer.sentencepiece_model import read_model
from paramgolf.data.tokenizer.vocabulary_format import refuse_other_formats

# what normalizations change: spaces at the ends and in a row, a line's end, a folded character
PROBE = " a  b\n\u00bd "


class SentencePieceVocabulary:
    """Ids, text and bytes of a SentencePiece model."""

    rule = TABLE_RULE

    def __init__(self, path: Path, transform: Transform) -> None:
        self._model = load_tokenizer(path)
        self._table = byte_table(self._model)
        self._transform = transform
        self._marks = None if transform == "none" else mark_ids(self._model)
        self.size: int = self._model.vocab_size()
        self.bos: int = self._model.bos_id()

    @property
    def rewrites(self) -> bool:
        """The model does not give every text back: it folds spaces or characters."""
        ids = next(self.encode([PROBE], count_bytes=False))[0]
        return self.decode(ids) != PROBE.encode()

    @property
    def has_marks(self) -> bool:
        """The model has the marks of the case transform as pieces."""
        return all(self._model.piece_to_id(mark) != self._model.unk_id() for mark in MARKS)

    def encode(
        self, texts: list[str], *, count_bytes: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield ids of each text, and their bytes by the token table where asked."""
        texts = [transformed(text, self._transform) for text in texts]
        for ids in self._model.encode(texts, return_type="numpy", num_threads=1):
            yield ids, self.count(ids) if count_bytes else None

    def count(self, ids: np.ndarray) -> np.ndarray:
        """Return the bytes uint16 [n] of tokens [n] of whole documents; BOS among them counts 0."""
        counts = self._table.counts(ids)
        return counts if self._marks is None else count_marks(ids, counts, self._marks)

    def decode(self, ids: np.ndarray) -> bytes:
        """Return the text that the model decodes to, out of the case transform, in UTF-8."""
        text = self._model.decode(ids[ids != self._model.unk_id()].tolist())
        return (text if self._marks is None else decode_case(text)).encode()

    def excesses(self, ids: np.ndarray) -> dict[int, str]:
        """Return the bytes by which the faults of pg#1545 and pg#1143 would count too high."""
        spaces = int((self._table.counts(ids) - self._table.base[ids]).sum())
        fallback = int(self._table.fallback[ids].sum())
        faults = {
            spaces: ": each leading space is counted twice (pg#1545)",
            2 * fallback: ": byte-fallback tokens are counted as 3 bytes (pg#1143)",
            -spaces: ": leading spaces are not counted",
        }
        if self._marks is not None:
            marks = int((self._table.counts(ids) - self.count(ids)).sum())
            literal = int(np.isin(ids, self._marks).sum()) * MARK_BYTES - marks
            faults[marks] = ": case marks are counted as text (pg#1729)"
            faults[-literal] = ": marks that the text itself holds are not counted"
        return faults


def load_tokenizer(path: str | Path) -> sentencepiece.SentencePieceProcessor:
    """Load a SentencePiece model that has a BOS token; a file of another format is named."""
    refuse_other_formats(Path(path))
    return read_model(path)

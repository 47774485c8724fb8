"""Proof of the bytes: every validation byte counted twice, training and validation text disjoint.

The scored count (val_bytes, from the token table) is held against the text itself, document by
document: what the tokens decode to, and the raw text where there is one. Rules R10 and R11.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from paramgolf.data.audit_files import check_files
from paramgolf.data.byte_counts import SIDECAR_RULE, TABLE_RULE, byte_table, without_case_marks
from paramgolf.data.config import AuditConfig
from paramgolf.data.documents import RAW_PATH, Document, read_documents, read_manifest
from paramgolf.data.overlap import Overlap, overlap
from paramgolf.data.token_documents import split_documents
from paramgolf.data.tokenizer import load_tokenizer
from paramgolf.data.tokens import TOKENS_PATH, open_tokens
from paramgolf.errors import ParamGolfError
from paramgolf.files import read_json
from paramgolf.progress import track

RETOKENIZE = "make the shards again with `dvc repro -f -s retokenize`"


@dataclass(slots=True)
class Totals:
    """Sums over the validation documents."""

    documents: int = 0
    bytes_raw: int = 0
    bytes_counted: int = 0
    lossless: bool = True


def audit(
    config: AuditConfig, raw: str | Path = RAW_PATH, folder: str | Path = TOKENS_PATH
) -> dict[str, Any]:
    """Return the metrics of audit.json; a false count, a cut split or a leaking one is an error.

    `bytes_val_raw` is the UTF-8 bytes of the raw validation text; for published shards, which come
    without it, the bytes of the text that the tokens decode to.
    """
    raw, folder = Path(raw), Path(folder)
    source, tokens = read_manifest(raw), open_tokens(folder)
    manifest = read_json(folder / "manifest.json")
    check_files(tokens, manifest, source)
    stream, counts = tokens.val(), tokens.val_bytes()
    checker = Checker(load_tokenizer(folder / manifest["tokenizer"]), manifest["val_bytes"]["rule"])
    texts = _raw_texts(source, raw)
    pieces = split_documents(stream, tokens.bos)
    for start, ids in track(pieces, "audit of validation", total=manifest["val"]["documents"]):
        counted = counts.read(start, start + len(ids))
        checker.check(ids, counted, next(texts) if texts else None)
    totals, shared = checker.totals, overlap(tokens, source, raw)
    _refuse_leak(shared, config.allowed_overlap)
    return {
        "documents_train": shared.documents_train,
        "documents_val": totals.documents,
        "bytes_val_raw": totals.bytes_raw,
        "bytes_val_counted": totals.bytes_counted,
        "bytes_lost": totals.bytes_raw - totals.bytes_counted,
        "bytes_per_token": totals.bytes_counted / len(stream),
        "bytes_scored_rule": manifest["val_bytes"]["rule"],
        "lossless": totals.lossless,
        "train_val_overlap": shared.documents,
    }


def _raw_texts(source: dict[str, Any], raw: Path) -> Iterator[Document] | None:
    return read_documents(raw / source["val"]["file"]) if source["kind"] == "documents" else None


def _refuse_leak(shared: Overlap, allowed: int) -> None:
    if shared.documents > allowed:
        raise ParamGolfError(
            "the training text holds validation documents (#2127)",
            where=shared.first,
            expected=f"at most {allowed} (audit.allowed_overlap)",
            found=f"{shared.documents} documents",
            fix="drop the documents that come twice from the source, or allow them",
        )


class Checker:
    """Holds each validation document's count against its text, and sums both."""

    def __init__(self, model: sentencepiece.SentencePieceProcessor, rule: str) -> None:
        self.totals = Totals()
        self._model, self._rule = model, rule
        self._table = byte_table(model)

    def check(self, ids: np.ndarray, counts: np.ndarray, document: Document | None) -> None:
        """Check one document: `ids` uint16 [n] with BOS first, `counts` uint16 [n] its bytes.

        `document` is the raw text; None: what the tokens decode to stands for it.
        """
        body = ids[1:]
        decoded = self._model.decode(body[body != self._model.unk_id()].tolist())
        origin = document or Document(f"validation document {self.totals.documents}", decoded)
        again = self._model.encode(origin.text, return_type="numpy")
        if document and not np.array_equal(again, body):
            raise ParamGolfError(
                "the validation tokens are not those of the validation text",
                where=document.name,
                expected=_excerpt(document.text),
                found=_excerpt(decoded),
                fix=RETOKENIZE,
            )
        text_bytes, counted = self._text_bytes(origin, decoded), int(counts.sum(dtype=np.int64))
        if counted > text_bytes or (counted < text_bytes and self._rule == TABLE_RULE):
            raise self._false_count(origin.name, ids, counted, text_bytes)
        self.totals.documents += 1
        self.totals.bytes_raw += len(origin.text.encode()) if document else text_bytes
        self.totals.bytes_counted += counted
        self.totals.lossless &= decoded == origin.text and np.array_equal(again, body)

    def _text_bytes(self, origin: Document, decoded: str) -> int:
        """Return the bytes that the text allows: of a normalised text, the smaller count."""
        if self._rule == SIDECAR_RULE:
            return len(without_case_marks(decoded).encode())
        return min(len(origin.text.encode()), len(decoded.encode()))

    def _false_count(self, name: str, ids: np.ndarray, counted: int, text: int) -> ParamGolfError:
        return ParamGolfError(
            "the byte counts of a validation document differ from its text"
            + self._known_fault(ids, counted - text),
            where=name,
            expected=f"{text} bytes",
            found=f"{counted} bytes",
            fix=RETOKENIZE,
        )

    def _known_fault(self, ids: np.ndarray, excess: int) -> str:
        """Name the published accounting fault that explains an excess of bytes, if one does."""
        spaces = int((self._table.counts(ids) - self._table.base[ids]).sum())
        fallback = int(self._table.fallback[ids].sum())
        faults = {
            spaces: ": each leading space is counted twice (#1545)",
            2 * fallback: ": byte-fallback tokens are counted as 3 bytes (#1143)",
            -spaces: ": leading spaces are not counted",
        }
        return faults.get(excess, "")


def _excerpt(text: str) -> str:
    return repr(text[:60])

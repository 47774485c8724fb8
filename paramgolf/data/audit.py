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

from paramgolf.data.config import AuditConfig
from paramgolf.data.documents import RAW_PATH, Document, read_documents
from paramgolf.data.manifests import (
    OFFSETS_RULE,
    SIDECAR_RULE,
    RawManifest,
    TextManifest,
    read_raw_manifest,
)
from paramgolf.data.overlap import Overlap, overlap
from paramgolf.data.shards import BLOCK_TOKENS, ShardStream, split_documents
from paramgolf.data.special_tokens import BOS
from paramgolf.data.token_set import TOKENS_PATH, TokenSet, open_tokens
from paramgolf.data.tokenizer import TextTokenizer, TokenizerFile, open_tokenizer
from paramgolf.errors import ParamGolfError
from paramgolf.files import sha256_file
from paramgolf.metrics import file_hashes
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
    source, tokens = read_raw_manifest(raw), open_tokens(folder)
    check_files(tokens, source)
    stream, counts, manifest = tokens.val(), tokens.val_bytes(), tokens.manifest
    path = str(folder / manifest.tokenizer)
    file = TokenizerFile(path, manifest.transform, manifest.fuse_markers)
    checker = Checker(open_tokenizer(file), manifest.val_bytes.rule)
    texts = _raw_texts(source, raw)
    total = manifest.val.documents or 0
    for start, ids in track(split_documents(stream), "audit of validation", total=total):
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
        "bytes_scored_rule": manifest.val_bytes.rule,
        "lossless": totals.lossless,
        "read": file_hashes(
            [
                *(raw / name for name in ("manifest.json", *source.file_names)),
                *(folder / name for name in tokens.file_names),
            ]
        ),
        "train_val_overlap": shared.documents,
    }


def _raw_texts(source: RawManifest, raw: Path) -> Iterator[Document] | None:
    return read_documents(raw / source.val.file) if isinstance(source, TextManifest) else None


def _refuse_leak(shared: Overlap, allowed: int) -> None:
    if shared.documents > allowed:
        raise ParamGolfError(
            "the training text holds validation documents (pg#2127)",
            where=shared.first,
            expected=f"at most {allowed} (audit.allowed_overlap)",
            found=f"{shared.documents} documents",
            fix="drop the documents that come twice from the source, or allow them",
        )


class Checker:
    """Holds each validation document's count against its text, and sums both."""

    def __init__(self, tokenizer: TextTokenizer, rule: str) -> None:
        self.totals = Totals()
        self._tokenizer, self._rule = tokenizer, rule

    def check(self, tokens: np.ndarray, counts: np.ndarray, document: Document | None) -> None:
        """Check one document: `tokens` uint16 [n], BOS first, and `counts` uint16 [n], its bytes.

        `document` is the raw text; None: what the tokens decode to stands for it.
        """
        decoded = self._tokenizer.decode(tokens)
        name = f"validation document {self.totals.documents}"
        origin = document or Document(name, decoded.decode(errors="replace"))
        again, recounted = next(self._tokenizer.encode([origin.text], count_bytes=True))
        same = np.array_equal(again, tokens)
        if document and not same:
            raise ParamGolfError(
                "the validation tokens are not those of the validation text",
                where=document.name,
                expected=_excerpt(document.text),
                found=_excerpt(decoded.decode(errors="replace")),
                fix=RETOKENIZE,
            )
        raw_bytes, counted = len(origin.text.encode()), int(counts.sum(dtype=np.int64))
        text_bytes = min(raw_bytes, len(decoded))
        assert recounted is not None
        # with unknown tokens in it, a rewritten text can be longer than what its offsets cover
        exact = int(recounted.sum()) if self._rule == OFFSETS_RULE else text_bytes
        if counted > text_bytes or (counted != exact and self._rule != SIDECAR_RULE):
            raise self._false_count(origin.name, tokens, counted, min(exact, text_bytes))
        self.totals.documents += 1
        self.totals.bytes_raw += raw_bytes if document else text_bytes
        self.totals.bytes_counted += counted
        self.totals.lossless &= decoded == origin.text.encode() and same

    def _false_count(
        self, name: str, tokens: np.ndarray, counted: int, expected: int
    ) -> ParamGolfError:
        return ParamGolfError(
            "the byte counts of a validation document differ from its text"
            + self._tokenizer.known_fault(tokens, counted - expected),
            where=name,
            expected=f"{expected} bytes",
            found=f"{counted} bytes",
            fix=RETOKENIZE,
        )


def _excerpt(text: str) -> str:
    return repr(text[:60])


def check_files(tokens: TokenSet, source: RawManifest) -> None:
    """Refuse shards that are cut, exchanged or lack BOS; `source` is the manifest of data/raw."""
    manifest = tokens.manifest
    for name, stream, split, promised in (
        ("val", tokens.val(), manifest.val, source.val.documents),
        ("train", tokens.train(), manifest.train, source.train.documents),
    ):
        _same(f"the {name} shards are cut", len(stream), split.tokens, "tokens")
        documents = _count_bos(stream)
        what = f"the {name} shards are cut, or BOS is missing before documents (pg#1779)"
        _same(what, documents, split.documents, "documents")
        if promised is not None:
            what = f"the {name} shards do not hold all documents of the source"
            _same(what, documents, promised, "documents")
    counts = len(tokens.val_bytes())
    _same("the byte counts are cut", counts, len(tokens.val()), "counts, one per token")
    for file in (*manifest.val.files, *manifest.val_bytes.files):
        found = sha256_file(tokens.folder / file.name)
        _same(f"{file.name} is not the file of the manifest", found, file.sha256, "(SHA-256)")


def _same(what: str, found: object, expected: object, unit: str) -> None:
    if found != expected:
        raise ParamGolfError(what, expected=f"{expected} {unit}", found=found, fix=RETOKENIZE)


def _count_bos(stream: ShardStream) -> int:
    offsets = range(0, len(stream), BLOCK_TOKENS)
    blocks = (stream.read(start, min(start + BLOCK_TOKENS, len(stream))) for start in offsets)
    return sum(int(np.count_nonzero(block == BOS)) for block in blocks)

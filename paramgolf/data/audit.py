"""Proof of the bytes: every validation byte counted twice, training and validation text disjoint.

The scored count (val_bytes, from the token table) is held against the text itself, document by
document: what the tokens decode to, and the raw text where there is one. Rules R10 and R11.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from paramgolf.data.config import AuditConfig
from paramgolf.data.documents import RAW_PATH, Document, read_documents
from paramgolf.data.manifests import (
    FIX_RAW,
    OFFSETS_RULE,
    TABLE_RULE,
    RawManifest,
    TextManifest,
    read_raw_manifest,
)
from paramgolf.data.overlap import Overlap, overlap
from paramgolf.data.shards import BLOCK_TOKENS, ShardStream, split_documents
from paramgolf.data.special_tokens import BOS, SPACE
from paramgolf.data.token_set import TOKENS_PATH, TokenSet, open_tokens
from paramgolf.data.tokenizer.text_tokenizer import TextTokenizer, TokenizerFile, open_tokenizer
from paramgolf.data.tokenizer.token_mask import has_mask, mask_of
from paramgolf.errors import ParamGolfError
from paramgolf.metrics import file_hashes
from paramgolf.progress import track

RETOKENIZE = "make the shards again with `dvc repro -f -s retokenize`"

NONE = "none"
SPACE_SIGN = "space_sign"
"""SentencePiece's sign for a space, U+2581, comes back as a space, as from all its models."""
NMT_NFKC = "nmt_nfkc"
"""The normalization of the published SentencePiece models: it folds spaces and some characters."""
PUBLISHED = "published"
"""Whatever the publishers of tokens without raw text did to it."""
OTHER = "other"
"""Anything else by which a text does not come back, an unknown token included."""
WORSE = (NONE, SPACE_SIGN, NMT_NFKC, PUBLISHED, OTHER)


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
    read = check_hashes(tokens, source, raw)
    stream, counts, manifest = tokens.val(), tokens.val_bytes(), tokens.manifest
    path = str(folder / manifest.tokenizer)
    tokenizer = open_tokenizer(TokenizerFile(path, manifest.transform))
    checker = Checker(tokenizer, manifest.val_bytes.rule)
    texts: Iterator[Document | None] = itertools.repeat(None)
    if isinstance(source, TextManifest):
        texts = read_documents(raw / source.val.file)
    total = manifest.val.documents or 0
    for start, ids in track(split_documents(stream), "audit of validation", total=total):
        checker.check(ids, counts.read(start, start + len(ids)), next(texts))
    shared = overlap(tokens, tokenizer, source, raw, checker.bytes_raw)
    _refuse_leak(shared, config.allowed_overlap)
    near_copies = shared.shares > config.near_copy_share  # a share that is NaN is not
    _refuse_near_copies(shared, near_copies, config.allowed_near_copies)
    return {
        **count_forbidden(tokens),
        "documents_train": shared.documents_train,
        "documents_val": checker.documents,
        "bytes_val_raw": checker.bytes_raw,
        "bytes_val_counted": checker.bytes_counted,
        "bytes_lost": checker.bytes_raw - checker.bytes_counted,
        "bytes_per_token": checker.bytes_counted / len(stream),
        "bytes_scored_rule": manifest.val_bytes.rule,
        "lossless": checker.normalization == NONE,
        "near_copies": int(near_copies.sum()),
        "normalization": checker.normalization,
        "read": read,
        "train_val_overlap": shared.documents,
        "val_shingles_in_train": distribution(shared),
    }


def _refuse_leak(shared: Overlap, allowed: int) -> None:
    if shared.documents > allowed:
        raise ParamGolfError(
            "the training text holds validation documents (pg#2127)",
            where=shared.first,
            expected=f"at most {allowed} (audit.allowed_overlap)",
            found=f"{shared.documents} documents",
            fix="drop the documents that come twice from the source, or allow them",
        )


def _refuse_near_copies(shared: Overlap, near: np.ndarray, allowed: float) -> None:
    if (count := int(near.sum())) > allowed * len(near):
        worst = int(np.nanargmax(shared.shares))
        raise ParamGolfError(
            "the training text holds near copies of validation documents",
            where=f"{shared.names[worst]} (validation): training holds "
            f"{shared.shares[worst]:.0%} of its shingles",
            expected=f"at most {allowed:.2%} of the documents (audit.allowed_near_copies)",
            found=f"{count} of {len(near)} documents, {count / len(near):.2%}",
            fix="drop what comes twice from the source, or allow more (docs/legality.md)",
        )


def distribution(shared: Overlap) -> dict[str, float]:
    """Return how the shares of validation documents' shingles that training holds are spread.

    `unknown` counts the documents of which no shingle was looked at.
    """
    known = ~np.isnan(shared.shares)
    shares = shared.shares[known] if known.any() else np.zeros(1)
    quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "most": 1.0}
    spread = {name: float(np.quantile(shares, q)) for name, q in quantiles.items()}
    sample = {"sampled_every": shared.sampled_every, "unknown": int((~known).sum())}
    return {"mean": float(shares.mean()), **spread, **sample}


class Checker:
    """Holds each validation document's count against its text, and sums both.

    Nothing here asks the tokenizer how many bytes its tokens stand for: the bytes are those of the
    text. A document that its tokens give back exactly must count as many as it has. Of one that
    they do not, at most the smaller of raw and decoded text counts. `normalization` tells why texts
    do not come back as they were, the worst of all documents.
    """

    def __init__(self, tokenizer: TextTokenizer, rule: str) -> None:
        self.documents = self.bytes_raw = self.bytes_counted = 0
        self.normalization = NONE
        self._tokenizer, self._rule = tokenizer, rule
        self._published_normalization = sentencepiece.SentencePieceNormalizer(
            rule_name=NMT_NFKC,
            add_dummy_prefix=False,
            escape_whitespaces=False,
            remove_extra_whitespaces=True,
        )

    def check(self, tokens: np.ndarray, counts: np.ndarray, document: Document | None) -> None:
        """Check one document: `tokens` uint16 [n], BOS first, and `counts` uint16 [n], its bytes.

        `document` is the raw text; None: what the tokens decode to stands for it.
        """
        decoded = self._tokenizer.decode(tokens)
        name = f"validation document {self.documents}"
        origin = document or Document(name, decoded.decode(errors="replace"))
        again, _ = next(self._tokenizer.encode([origin.text], count_bytes=False))
        same = np.array_equal(again, tokens)
        if document and not same:
            raise ParamGolfError(
                "the validation tokens are not those of the validation text",
                where=document.name,
                expected=_excerpt(document.text),
                found=_excerpt(decoded.decode(errors="replace")),
                fix=RETOKENIZE,
            )
        raw, counted = origin.text.encode(), int(counts.sum(dtype=np.int64))
        text_bytes, lossless = min(len(raw), len(decoded)), decoded == raw and same
        # a published sidecar may count less, and so may offsets where characters are unknown
        exact = self._rule == TABLE_RULE or (self._rule == OFFSETS_RULE and lossless)
        if counted > text_bytes or (exact and counted < text_bytes):
            raise self._false_count(origin.name, tokens, counted, text_bytes)
        self.documents += 1
        self.bytes_raw += len(raw) if document else text_bytes
        self.bytes_counted += counted
        if not lossless and self.normalization != OTHER:
            found = self._normalization(decoded, document)
            self.normalization = max(found, self.normalization, key=WORSE.index)

    def _normalization(self, decoded: bytes, document: Document | None) -> str:
        """Name what made a document's tokens give back another text."""
        if document is None:
            return PUBLISHED
        known = self._published_normalization.Normalize(document.text)
        for text, name in ((document.text, SPACE_SIGN), (known, NMT_NFKC)):
            if decoded == text.replace(SPACE, " ").encode():
                return name
        return OTHER

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
        documents = sum(int(np.count_nonzero(block == BOS)) for block in _blocks(stream, 0))
        what = f"the {name} shards are cut, or BOS is missing before documents (pg#1779)"
        _same(what, documents, split.documents, "documents")
        if promised is not None:
            what = f"the {name} shards do not hold all documents of the source"
            _same(what, documents, promised, "documents")
    counts = len(tokens.val_bytes())
    _same("the byte counts are cut", counts, len(tokens.val()), "counts, one per token")


def check_hashes(tokens: TokenSet, source: RawManifest, raw: Path) -> list[dict[str, str]]:
    """Refuse files that are not those of their manifests; return path and SHA-256 of all files.

    What the manifests say of each other's files holds for the files only so: the texts that are
    compared must be those that the tokens were made of.
    """
    promised = {raw / name: digest for name, digest in source.hashes.items()}
    made = {tokens.folder / name: digest for name, digest in tokens.manifest.hashes.items()}
    for path in (*promised, *made):
        if not path.is_file():
            what = "a file of a manifest is missing"
            raise ParamGolfError(what, where=path, fix=_again(path, raw))
    read = file_hashes([raw / "manifest.json", *promised, tokens.folder / "manifest.json", *made])
    found = {file["path"]: file["sha256"] for file in read}
    for path, digest in (promised | made).items():
        what, fix = f"{path} is not the file of the manifest", _again(path, raw)
        _same(what, found[path.as_posix()], digest, "(SHA-256)", fix)
    return read


def _again(path: Path, raw: Path) -> str:
    return FIX_RAW if path.parent == raw else RETOKENIZE


def _same(what: str, found: object, expected: object, unit: str, fix: str = RETOKENIZE) -> None:
    if found != expected:
        raise ParamGolfError(what, expected=f"{expected} {unit}", found=found, fix=fix)


def count_forbidden(tokens: TokenSet) -> dict[str, Any]:
    """Return how many pairs of training and validation tokens token_mask forbids: 0, or it errs.

    And the share of the vocabulary that it forbids after a validation token, in the mean. None
    where the tokenizer has no mask.
    """
    if not has_mask(tokens):
        return {"pairs_forbidden": None, "mask_share": None}
    mask = mask_of(tokens)
    shares, val = 1 - mask.allowed.mean(1), tokens.val()
    total = sum(float(shares[block[:-1]].sum()) for block in _blocks(val, 1))
    streams = (val, tokens.train())
    pairs = sum(len(mask.forbidden(block)) for stream in streams for block in _blocks(stream, 1))
    return {"pairs_forbidden": pairs, "mask_share": total / max(1, len(val) - 1)}


def _blocks(stream: ShardStream, more: int) -> Iterator[np.ndarray]:
    """Yield the stream in blocks, each of which ends `more` tokens into the one behind it."""
    for start in range(0, len(stream) - more, BLOCK_TOKENS):
        yield stream.read(start, min(start + BLOCK_TOKENS + more, len(stream)))

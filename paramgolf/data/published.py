"""Published token shards: checked, linked into data/tokens, and their validation bytes counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from paramgolf.data.byte_counts import SIDECAR_RULE, TABLE_RULE, at_most
from paramgolf.data.caseops import Fusion
from paramgolf.data.folders import link_or_copy
from paramgolf.data.shards import (
    BLOCK_TOKENS,
    ShardStream,
    ShardWriter,
    read_shard,
    whole_documents,
)
from paramgolf.data.special_tokens import BOS
from paramgolf.data.vocabulary_sentencepiece import SentencePieceVocabulary
from paramgolf.errors import ParamGolfError
from paramgolf.progress import say, track

SPLITS = ("val", "train")


def adopt_shards(
    source: dict[str, Any], raw: Path, folder: Path, vocabulary: SentencePieceVocabulary
) -> dict[str, Any]:
    """Put the shards of data/raw into `folder`; return the manifest's entries of the splits.

    The bytes of validation tokens come from the published sidecars where the variant has them, as
    a case transform needs (#1729), else from the token table. Files are linked, but where marks are
    to be fused, or a sidecar counts spaces that the tokenizer folds away, they are written anew.
    """
    _check_sidecars(source, raw)
    documents = {split: _count_documents(source, split, raw, vocabulary) for split in SPLITS}
    if vocabulary.fusion is None:
        content = _link_splits(source, raw, folder, vocabulary)
    else:
        content = _fuse_splits(source, raw, folder, vocabulary)
    for split in SPLITS:
        content[split]["documents"] = documents[split]
    total = _sum(folder, content["val_bytes"]["files"])
    sidecar = bool(source["val_bytes"]["files"])
    if sidecar and (excess := _sum(raw, source["val_bytes"]["files"]) - total):
        say(f"the published byte counts exceed the decoded text by {excess}: taken off")
    content["val_bytes"] |= {"bytes": total, "rule": SIDECAR_RULE if sidecar else TABLE_RULE}
    return content


def _sum(folder: Path, entries: list[dict[str, Any]]) -> int:
    return sum(int(read_shard(folder / entry["name"]).sum(dtype=np.int64)) for entry in entries)


def _check_sidecars(source: dict[str, Any], raw: Path) -> None:
    found, expected = source["val_bytes"]["tokens"], source["val"]["tokens"]
    if source["val_bytes"]["files"] and found != expected:
        raise ParamGolfError(
            "the published byte counts do not fit the validation shards",
            where=raw,
            expected=f"{expected} counts, one a token",
            found=found,
            fix="take another data.hub.revision",
        )


def _count_documents(
    source: dict[str, Any], split: str, raw: Path, vocabulary: SentencePieceVocabulary
) -> int:
    """Count the documents of a split; a token outside the vocabulary is an error."""
    documents = 0
    entries = source[split]["files"]
    for entry in track(entries, f"shards of {split}", total=len(entries)):
        tokens = read_shard(raw / entry["name"])
        if len(tokens) and (largest := int(tokens.max())) >= vocabulary.size:
            raise ParamGolfError(
                "a shard holds tokens that the tokenizer does not have",
                where=raw / entry["name"],
                expected=f"tokens below {vocabulary.size}",
                found=largest,
                fix="take the tokenizer and the shards of one variant",
            )
        documents += int(np.count_nonzero(tokens == BOS))
    return documents


def _link_splits(
    source: dict[str, Any], raw: Path, folder: Path, vocabulary: SentencePieceVocabulary
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for split in SPLITS:
        tokens = sum(entry["tokens"] for entry in source[split]["files"])
        content[split] = {"files": _link(source, split, raw, folder), "tokens": tokens}
    if source["val_bytes"]["files"] and not vocabulary.rewrites:
        return content | {"val_bytes": {"files": _link(source, "val_bytes", raw, folder)}}
    with ShardWriter(folder, "val_bytes", _capacity(source, "val")) as writer:
        for _, counts in _val_blocks(source, raw, vocabulary):
            writer.append(counts)
    return content | {"val_bytes": {"files": writer.entries}}


def _link(source: dict[str, Any], split: str, raw: Path, folder: Path) -> list[dict[str, Any]]:
    linked = []
    for index, entry in enumerate(source[split]["files"]):
        name = f"{split}_{index:06d}.bin"
        link_or_copy(raw / entry["name"], folder / name)
        linked.append(entry | {"name": name})
    return linked


def _fuse_splits(
    source: dict[str, Any], raw: Path, folder: Path, vocabulary: SentencePieceVocabulary
) -> dict[str, Any]:
    fusion, capacity = vocabulary.fusion, _capacity(source, "train")
    assert isinstance(fusion, Fusion)
    with (
        ShardWriter(folder, "val", capacity) as val,
        ShardWriter(folder, "val_bytes", capacity) as val_bytes,
        ShardWriter(folder, "train", capacity) as train,
    ):
        for ids, counts in _val_blocks(source, raw, vocabulary):
            fused, sums = fusion.fuse(ids, counts)
            assert sums is not None
            val.append(fused)
            val_bytes.append(sums)
        stream = _open(source, "train", raw)
        blocks = whole_documents(stream, BOS)
        total = -(-len(stream) // BLOCK_TOKENS)
        for _, ids in track(blocks, "fusing marks of train", total=total):
            train.append(fusion.fuse(ids, None)[0])
    return {
        "val": {"files": val.entries, "tokens": val.total},
        "train": {"files": train.entries, "tokens": train.total},
        "val_bytes": {"files": val_bytes.entries},
    }


def _val_blocks(
    source: dict[str, Any], raw: Path, vocabulary: SentencePieceVocabulary
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield validation tokens in whole documents, each block with its byte counts."""
    sidecars, rewrites = _open(source, "val_bytes", raw), vocabulary.rewrites
    for start, ids in whole_documents(_open(source, "val", raw), BOS):
        counts = vocabulary.count(ids)
        if len(sidecars):
            published = sidecars.read(start, start + len(ids))
            counts = _limit(ids, published, counts) if rewrites else published
        yield ids, counts


def _limit(ids: np.ndarray, published: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Return the `published` counts, each document's at most the sum of the `decoded` ones.

    Sidecars count the raw text: a run of spaces in full where the tokens hold one. Bits are divided
    by the smaller number of bytes, here as with every tokenizer that rewrites the text.
    """
    starts = np.flatnonzero(ids == BOS)
    limits = np.add.reduceat(decoded, starts, dtype=np.int64)
    excess = np.add.reduceat(published, starts, dtype=np.int64) > limits
    counts = published.copy()
    for index in np.flatnonzero(excess):
        document = slice(starts[index], starts[index + 1] if index + 1 < len(starts) else None)
        counts[document] = at_most(published[document], int(limits[index]))
    return counts


def _open(source: dict[str, Any], split: str, raw: Path) -> ShardStream:
    return ShardStream([raw / entry["name"] for entry in source[split]["files"]])


def _capacity(source: dict[str, Any], split: str) -> int:
    return max(int(entry["tokens"]) for entry in source[split]["files"])

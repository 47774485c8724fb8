"""Published token shards: checked, linked into data/tokens, and their validation bytes counted.

The bytes of validation tokens come from the published sidecars where the variant has them, as a
case transform needs (pg#1729), else from the token table. Files are linked; counts are written anew
where they come from the table, or where a sidecar counts spaces that the tokenizer folds away.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paramgolf.data.byte_counts import at_most
from paramgolf.data.folders import link_or_copy
from paramgolf.data.manifests import (
    SIDECAR_RULE,
    TABLE_RULE,
    ByteCounts,
    ShardFile,
    ShardManifest,
    ShardSplit,
)
from paramgolf.data.shards import ShardStream, ShardWriter, read_shard, whole_documents
from paramgolf.data.special_tokens import BOS
from paramgolf.data.vocabulary_sentencepiece import SentencePieceVocabulary
from paramgolf.errors import ParamGolfError
from paramgolf.progress import say, track


@dataclass(frozen=True, slots=True)
class Splits:
    """What data/tokens holds, as its manifest says it."""

    train: ShardSplit
    val: ShardSplit
    val_bytes: ByteCounts


def adopt_shards(
    source: ShardManifest, raw: Path, folder: Path, vocabulary: SentencePieceVocabulary
) -> Splits:
    """Put the shards of data/raw into `folder`; return what the manifest says of them."""
    sidecar = source.val_bytes
    if sidecar.files and sidecar.tokens != source.val.tokens:
        raise ParamGolfError(
            "the published byte counts do not fit the validation shards",
            where=raw,
            expected=f"{source.val.tokens} counts, one per token",
            found=sidecar.tokens,
            fix="take another data.hub.revision",
        )
    val = _adopt("val", source.val, raw, folder, vocabulary)
    train = _adopt("train", source.train, raw, folder, vocabulary)
    if sidecar.files and not vocabulary.rewrites:
        counts = _link("val_bytes", sidecar, raw, folder)
    else:
        counts = _count_bytes(source, raw, folder, vocabulary)
    total = _sum(folder, counts)
    if sidecar.files and (excess := _sum(raw, sidecar.files) - total):
        say(f"the published byte counts exceed the decoded text by {excess}: taken off")
    rule = SIDECAR_RULE if sidecar.files else TABLE_RULE
    return Splits(train, val, ByteCounts(files=counts, bytes=total, rule=rule))


def _sum(folder: Path, files: tuple[ShardFile, ...]) -> int:
    return sum(int(read_shard(folder / file.name).sum(dtype=np.int64)) for file in files)


def _adopt(
    name: str, split: ShardSplit, raw: Path, folder: Path, vocabulary: SentencePieceVocabulary
) -> ShardSplit:
    """Link a split and count its documents; a token outside the vocabulary is an error."""
    documents = 0
    for file in track(split.files, f"shards of {name}", total=len(split.files)):
        tokens = read_shard(raw / file.name)
        if len(tokens) and (largest := int(tokens.max())) >= vocabulary.size:
            raise ParamGolfError(
                "a shard holds tokens that the tokenizer does not have",
                where=raw / file.name,
                expected=f"tokens below {vocabulary.size}",
                found=largest,
                fix="take the tokenizer and the shards of one variant",
            )
        documents += int(np.count_nonzero(tokens == BOS))
    files = _link(name, split, raw, folder)
    return dataclasses.replace(split, files=files, documents=documents)


def _link(name: str, split: ShardSplit, raw: Path, folder: Path) -> tuple[ShardFile, ...]:
    """Link the shards of a split as NAME_NNNNNN.bin."""
    linked = []
    for index, file in enumerate(split.files):
        target = f"{name}_{index:06d}.bin"
        link_or_copy(raw / file.name, folder / target)
        linked.append(dataclasses.replace(file, name=target))
    return tuple(linked)


def _count_bytes(
    source: ShardManifest, raw: Path, folder: Path, vocabulary: SentencePieceVocabulary
) -> tuple[ShardFile, ...]:
    """Write the bytes of the validation tokens: the sidecar's, limited, or those of the table."""
    tokens, sidecar = (
        ShardStream([raw / file.name for file in split.files])
        for split in (source.val, source.val_bytes)
    )
    capacity = max(file.tokens for file in source.val.files)
    with ShardWriter(folder, "val_bytes", capacity) as writer:
        for start, ids in whole_documents(tokens):
            counts = vocabulary.count(ids)
            if len(sidecar):
                counts = _limit(ids, sidecar.read(start, start + len(ids)), counts)
            writer.append(counts)
    return writer.files


def _limit(ids: np.ndarray, published: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Return the `published` counts, each document's at most the sum of the `decoded` ones.

    Sidecars count the raw text: a run of spaces in full where the tokens hold one. Bits are divided
    by the smaller number of bytes, here as with every tokenizer that rewrites the text.
    """
    bounds = np.flatnonzero(ids == BOS)[1:]
    documents = zip(np.split(published, bounds), np.split(decoded, bounds), strict=True)
    return np.concatenate([at_most(counts, int(own.sum())) for counts, own in documents])

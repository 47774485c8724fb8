"""Published token shards: checked, linked into data/tokens, and their validation bytes counted.

The bytes of validation tokens come from the published sidecars where the variant has them, as a
case transform needs (pg#1729), else from the token table. Files are linked, but where marks are to
be fused, or a sidecar counts spaces that the tokenizer folds away, they are written anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
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
from paramgolf.data.shards import (
    ShardStream,
    ShardWriter,
    read_shard,
    whole_documents,
)
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
    _check_sidecars(source, raw)
    val_documents = _count_documents("val", source.val, raw, vocabulary)
    train_documents = _count_documents("train", source.train, raw, vocabulary)
    validation = Validation(source, raw, vocabulary)
    train, val, val_bytes = _link_splits(validation, folder)
    total = _sum(folder, val_bytes)
    if validation.has_sidecar and (excess := _sum(raw, source.val_bytes.files) - total):
        say(f"the published byte counts exceed the decoded text by {excess}: taken off")
    rule = SIDECAR_RULE if validation.has_sidecar else TABLE_RULE
    return Splits(
        dataclasses.replace(train, documents=train_documents),
        dataclasses.replace(val, documents=val_documents),
        ByteCounts(files=val_bytes, bytes=total, rule=rule),
    )


def _sum(folder: Path, files: tuple[ShardFile, ...]) -> int:
    return sum(int(read_shard(folder / file.name).sum(dtype=np.int64)) for file in files)


def _check_sidecars(source: ShardManifest, raw: Path) -> None:
    if source.val_bytes.files and source.val_bytes.tokens != source.val.tokens:
        raise ParamGolfError(
            "the published byte counts do not fit the validation shards",
            where=raw,
            expected=f"{source.val.tokens} counts, one per token",
            found=source.val_bytes.tokens,
            fix="take another data.hub.revision",
        )


def _count_documents(
    name: str, split: ShardSplit, raw: Path, vocabulary: SentencePieceVocabulary
) -> int:
    """Count the documents of a split; a token outside the vocabulary is an error."""
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
    return documents


@dataclass(frozen=True, slots=True)
class Validation:
    """The published validation tokens, and what is known of their bytes."""

    source: ShardManifest
    raw: Path
    vocabulary: SentencePieceVocabulary

    @property
    def has_sidecar(self) -> bool:
        """The publisher counted the bytes."""
        return bool(self.source.val_bytes.files)

    def open(self, split: ShardSplit) -> ShardStream:
        """Open the shards of a published split."""
        return ShardStream([self.raw / file.name for file in split.files])

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the tokens in blocks of whole documents, each with the bytes of its tokens."""
        sidecar, rewrites = self.open(self.source.val_bytes), self.vocabulary.rewrites
        for start, ids in whole_documents(self.open(self.source.val)):
            counts = self.vocabulary.count(ids)
            if self.has_sidecar:
                published = sidecar.read(start, start + len(ids))
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


Adopted = tuple[ShardSplit, ShardSplit, tuple[ShardFile, ...]]
"""Training, validation, and the shards of byte counts."""


def _link_splits(validation: Validation, folder: Path) -> Adopted:
    source, raw = validation.source, validation.raw
    train = _link("train", source.train, raw, folder)
    val = _link("val", source.val, raw, folder)
    if validation.has_sidecar and not validation.vocabulary.rewrites:
        return train, val, _link("val_bytes", source.val_bytes, raw, folder).files
    capacity = max(file.tokens for file in source.val.files)
    with ShardWriter(folder, "val_bytes", capacity) as writer:
        for _, counts in validation.blocks():
            writer.append(counts)
    return train, val, writer.files


def _link(name: str, split: ShardSplit, raw: Path, folder: Path) -> ShardSplit:
    linked = []
    for index, file in enumerate(split.files):
        target = f"{name}_{index:06d}.bin"
        link_or_copy(raw / file.name, folder / target)
        linked.append(dataclasses.replace(file, name=target))
    return dataclasses.replace(split, files=tuple(linked))

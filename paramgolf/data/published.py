"""Published token shards: checked, linked into data/tokens, and their validation bytes counted.

The bytes of validation tokens come from the published sidecars where the variant has them, as a
case transform needs (pg#1729), else from the token table. Files are linked; counts are written anew
where they come from the table, or where a sidecar counts spaces that the tokenizer folds away.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from paramgolf.data.folders import link_or_copy
from paramgolf.data.manifests import (
    SIDECAR_RULE,
    TABLE_RULE,
    ByteCounts,
    ShardFile,
    ShardManifest,
    ShardSplit,
)
from paramgolf.data.shards import ShardStream, ShardWriter, byte_counts, read_shard, whole_documents
from paramgolf.data.special_tokens import BOS
from paramgolf.data.tokenizer.byte_counts import at_most
from paramgolf.data.tokenizer.text_tokenizer import TokenizerFile
from paramgolf.data.tokenizer.vocabulary_sentencepiece import SentencePieceVocabulary
from paramgolf.errors import ParamGolfError
from paramgolf.progress import say, track


def adopt_shards(
    source: ShardManifest, raw: Path, folder: Path, file: TokenizerFile
) -> tuple[ShardSplit, ShardSplit, ByteCounts]:
    """Put the shards of data/raw into `folder`, which holds their tokenizer, `file`.

    Returns what the manifest says of training, of validation, and of the bytes of its tokens.
    """
    vocabulary, sidecar = _open_tokenizer(file), source.val_bytes
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
    if not sidecar.files:
        return train, val, byte_counts(folder, counts, TABLE_RULE)
    val_bytes = byte_counts(folder, counts, SIDECAR_RULE)
    if excess := byte_counts(raw, sidecar.files, SIDECAR_RULE).bytes - val_bytes.bytes:
        say(f"the published byte counts exceed the decoded text by {excess}: taken off")
    return train, val, val_bytes


def _open_tokenizer(file: TokenizerFile) -> SentencePieceVocabulary:
    """Open the tokenizer of published shards; their BOS and case transform must be those stated."""
    vocabulary = SentencePieceVocabulary(Path(file.path), file.transform)
    if vocabulary.bos != BOS:
        raise ParamGolfError(
            "the published shards have another BOS",
            expected=f"token {BOS}",
            found=f"token {vocabulary.bos}",
            fix="take the documents (data.hub.kind) and this tokenizer as a file",
        )
    if file.transform != "caseops" and vocabulary.has_marks:
        raise ParamGolfError(
            "the published tokens are those of a case transform (pg#1729)",
            expected="tokenizer.transform caseops",
            found=file.transform,
            fix="set tokenizer.transform to caseops",
        )
    return vocabulary


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

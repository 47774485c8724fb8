"""Shards, folders of tokens and folders of published shards, written for tests."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paramgolf.data.manifests import (
    SCHEMA,
    TABLE_RULE,
    PublishedTokenizer,
    ShardFile,
    ShardManifest,
    ShardSplit,
    TokensManifest,
    write_manifest,
)
from paramgolf.data.shards import byte_counts, header
from paramgolf.data.special_tokens import BOS
from paramgolf.files import sha256_file, write_bytes

NO_HASH = "0" * 64
Parts = Sequence[np.ndarray]


def write_shard(path: Path, values: np.ndarray) -> None:
    """Write values as one shard under a name of its own."""
    assert 0 <= values.min(initial=0) <= values.max(initial=0) < 2**16
    write_bytes(path, header(len(values)) + values.astype("<u2").tobytes())


def write_split(folder: Path, stem: str, parts: Parts) -> ShardSplit:
    """Write a shard STEM_NNNNNN.bin for each part; the documents are those that begin there."""
    files = []
    for index, values in enumerate(parts):
        path = folder / f"{stem}_{index:06d}.bin"
        write_shard(path, values)
        files.append(ShardFile(name=path.name, tokens=len(values), sha256=sha256_file(path)))
    documents = sum(int((values == BOS).sum()) for values in parts)
    return ShardSplit(files=tuple(files), tokens=sum(map(len, parts)), documents=documents)


def write_token_set(
    folder: Path, *, train: Parts = (), val: Parts, val_bytes: Parts, vocab_size: int
) -> None:
    """Write a folder of tokens as retokenize does, without a tokenizer."""
    counts = write_split(folder, "val_bytes", val_bytes)
    manifest = TokensManifest(
        schema=SCHEMA,
        vocab_size=vocab_size,
        bos=BOS,
        tokenizer="tokenizer.model",
        tokenizer_sha256=NO_HASH,
        tokenizer_bos=BOS,
        transform="none",
        train=write_split(folder, "train", train),
        val=write_split(folder, "val", val),
        val_bytes=byte_counts(folder, counts.files, TABLE_RULE),
    )
    write_manifest(folder, manifest)


class PublishedShards:
    """data/raw of published shards, as download writes it."""

    def __init__(self, folder: Path, tokenizer: bytes) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "tokenizer.model").write_bytes(tokenizer)
        empty = ShardSplit(files=(), tokens=0)
        self.manifest = ShardManifest(
            schema=SCHEMA,
            kind="shards",
            source="hub",
            repository="somebody/parameter-golf",
            revision="main",
            commit="0" * 40,
            variant="sp320",
            tokenizer=PublishedTokenizer(
                file="tokenizer.model",
                published="sp320.model",
                sha256=hashlib.sha256(tokenizer).hexdigest(),
            ),
            train=empty,
            val=empty,
            val_bytes=empty,
        )

    def add(self, name: str, parts: Parts, *, documents: int | None = None) -> None:
        """Write a split; its manifest promises `documents`."""
        split = write_split(self.folder, f"fineweb_{name}", parts)
        changes: dict[str, Any] = {name: dataclasses.replace(split, documents=documents)}
        self.manifest = dataclasses.replace(self.manifest, **changes)
        write_manifest(self.folder, self.manifest)

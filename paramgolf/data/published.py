"""Published token shards: checked, linked into data/tokens, and their validation bytes counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from paramgolf.data.byte_counts import SIDECAR_RULE, TABLE_RULE, ByteTable, byte_table
from paramgolf.data.folders import link_or_copy
from paramgolf.data.shard_writer import ShardWriter
from paramgolf.data.shards import Stream, read_shard
from paramgolf.errors import ParamGolfError
from paramgolf.progress import track

BLOCK_TOKENS = 1 << 22


def adopt_shards(
    source: dict[str, Any],
    raw: Path,
    folder: Path,
    model: sentencepiece.SentencePieceProcessor,
) -> dict[str, Any]:
    """Link the shards of data/raw into `folder`; return the manifest's entries of the splits.

    The bytes of validation tokens come from the published sidecars where the variant has them, as
    a case transform needs (#1729), else from the token table.
    """
    content = {}
    for split in ("val", "train"):
        entries = _link(source[split]["files"], split, raw, folder)
        paths = [folder / entry["name"] for entry in entries]
        documents = sum(
            _inspect(path, model) for path in track(paths, f"shards of {split}", total=len(paths))
        )
        tokens = sum(entry["tokens"] for entry in entries)
        content[split] = {"files": entries, "tokens": tokens, "documents": documents}
    content["val_bytes"] = _sidecars(source, raw, folder) or _count(content["val"], folder, model)
    return content


def _link(
    entries: list[dict[str, Any]], stem: str, raw: Path, folder: Path
) -> list[dict[str, Any]]:
    linked = []
    for index, entry in enumerate(entries):
        name = f"{stem}_{index:06d}.bin"
        link_or_copy(raw / entry["name"], folder / name)
        linked.append(entry | {"name": name})
    return linked


def _inspect(path: Path, model: sentencepiece.SentencePieceProcessor) -> int:
    """Count the documents of a shard; a token outside the vocabulary is an error."""
    tokens = read_shard(path)
    if len(tokens) and (largest := int(tokens.max())) >= model.vocab_size():
        raise ParamGolfError(
            "a shard holds tokens that the tokenizer does not have",
            where=path,
            expected=f"tokens below {model.vocab_size()}",
            found=largest,
            fix="take the tokenizer and the shards of one variant",
        )
    return int(np.count_nonzero(tokens == model.bos_id()))


def _sidecars(source: dict[str, Any], raw: Path, folder: Path) -> dict[str, Any] | None:
    """Link the published byte counts, one a validation token; None where there are none."""
    entries = source["val_bytes"]["files"]
    if not entries:
        return None
    if (found := source["val_bytes"]["tokens"]) != (expected := source["val"]["tokens"]):
        raise ParamGolfError(
            "the published byte counts do not fit the validation shards",
            where=raw,
            expected=f"{expected} counts, one a token",
            found=found,
            fix="take another data.hub.revision",
        )
    linked = _link(entries, "val_bytes", raw, folder)
    total = sum(int(read_shard(folder / entry["name"]).sum(dtype=np.int64)) for entry in linked)
    return {"files": linked, "bytes": total, "rule": SIDECAR_RULE}


def _count(
    val: dict[str, Any], folder: Path, model: sentencepiece.SentencePieceProcessor
) -> dict[str, Any]:
    """Write the byte counts of the validation shards by the token table."""
    stream = Stream([folder / entry["name"] for entry in val["files"]])
    table, total = byte_table(model), 0
    capacity = max(entry["tokens"] for entry in val["files"])
    with ShardWriter(folder, "val_bytes", capacity) as writer:
        for counts in _counts(stream, table):
            writer.append(counts)
            total += int(counts.sum(dtype=np.int64))
    return {"files": writer.entries, "bytes": total, "rule": TABLE_RULE}


def _counts(stream: Stream, table: ByteTable) -> Iterator[np.ndarray]:
    previous = None
    for start in range(0, len(stream), BLOCK_TOKENS):
        tokens = stream.read(start, min(start + BLOCK_TOKENS, len(stream)))
        yield table.counts(tokens, previous)
        previous = int(tokens[-1])

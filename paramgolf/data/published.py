"""Published token shards: checked, linked into data/tokens, and their validation bytes counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from paramgolf.data.bos import BOS
from paramgolf.data.byte_counts import SIDECAR_RULE, TABLE_RULE
from paramgolf.data.case_tokens import Fusion
from paramgolf.data.folders import link_or_copy
from paramgolf.data.shard_writer import ShardWriter
from paramgolf.data.shards import Stream, read_shard
from paramgolf.data.token_documents import whole_documents
from paramgolf.data.vocabulary_sentencepiece import SentencePieceVocabulary
from paramgolf.errors import ParamGolfError
from paramgolf.progress import track

Blocks = Iterator[tuple[np.ndarray, np.ndarray | None]]


def adopt_shards(
    source: dict[str, Any], raw: Path, folder: Path, vocabulary: SentencePieceVocabulary
) -> dict[str, Any]:
    """Link the shards of data/raw into `folder`; return the manifest's entries of the splits.

    The bytes of validation tokens come from the published sidecars where the variant has them, as
    a case transform needs (#1729), else from the token table. Where marks are to be fused, shards
    and bytes are written anew.
    """
    _check_sidecars(source, raw)
    content: dict[str, Any] = {}
    for split in ("val", "train"):
        entries = source[split]["files"]
        shards = track(entries, f"shards of {split}", total=len(entries))
        documents = sum(_inspect(raw / entry["name"], vocabulary) for entry in shards)
        blocks = _val_blocks(source, raw, vocabulary) if split == "val" else _train(source, raw)
        if vocabulary.fusion is not None:
            content |= _write(split, _fused(blocks, vocabulary.fusion), entries, folder)
        else:
            linked = _link(entries, split, raw, folder)
            tokens = sum(entry["tokens"] for entry in entries)
            content[split] = {"files": linked, "tokens": tokens}
        content[split]["documents"] = documents
    if "val_bytes" not in content:
        content["val_bytes"] = _link_sidecars(source, raw, folder) or _write(
            None, _val_blocks(source, raw, vocabulary), source["val"]["files"], folder
        )
    ...
    return content

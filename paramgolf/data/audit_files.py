"""Checks of token files: hashes, token counts and BOS counts against the manifests."""

from __future__ import annotations

from typing import Any

import numpy as np

from paramgolf.data.shards import Stream
from paramgolf.data.token_documents import BLOCK_TOKENS
from paramgolf.data.tokens import TokenSet
from paramgolf.errors import ParamGolfError
from paramgolf.files import sha256_file

FIX = "make the shards again with `dvc repro -f -s retokenize`"


def check_files(tokens: TokenSet, manifest: dict[str, Any], source: dict[str, Any]) -> None:
    """Refuse shards that are cut, exchanged or lack BOS; `source` is the manifest of data/raw."""
    for split, stream in (("val", tokens.val()), ("train", tokens.train())):
        _same(f"the {split} shards are cut", len(stream), manifest[split]["tokens"], "tokens")
        documents = _count_bos(stream, tokens.bos)
        what = f"the {split} shards are cut, or BOS is missing before documents (#1779)"
        _same(what, documents, manifest[split]["documents"], "documents")
        if (promised := source[split].get("documents")) is not None:
            what = f"the {split} shards do not hold all documents of the source"
            _same(what, documents, promised, "documents")
    _same(
        "the byte counts are cut", len(tokens.val_bytes()), len(tokens.val()), "counts, one a token"
    )
    for entry in manifest["val"]["files"] + manifest["val_bytes"]["files"]:
        found = sha256_file(tokens.folder / entry["name"])
        _same(
            f"{entry['name']} is not the file of the manifest", found, entry["sha256"], "(SHA-256)"
        )


def _same(what: str, found: object, expected: object, unit: str) -> None:
    if found != expected:
        raise ParamGolfError(what, expected=f"{expected} {unit}", found=found, fix=FIX)


def _count_bos(stream: Stream, bos: int) -> int:
    offsets = range(0, len(stream), BLOCK_TOKENS)
    blocks = (stream.read(start, min(start + BLOCK_TOKENS, len(stream))) for start in offsets)
    return sum(int(np.count_nonzero(block == bos)) for block in blocks)

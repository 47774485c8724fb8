"""From data/raw to data/tokens: a tokenizer, shards, and the bytes of every validation token."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from paramgolf.data.byte_counts import TABLE_RULE, byte_table
from paramgolf.data.config import TokenizerConfig
from paramgolf.data.documents import RAW_PATH, read_lines, read_manifest
from paramgolf.data.encode import BATCH_BYTES, encode_documents
from paramgolf.data.folders import fresh_folder, locate
from paramgolf.data.published import adopt_shards
from paramgolf.data.shard_writer import ShardWriter
from paramgolf.data.tokenizer import draw_texts, load_tokenizer, train_tokenizer
from paramgolf.data.tokens import SCHEMA, TOKENS_PATH
from paramgolf.errors import ParamGolfError
from paramgolf.files import sha256_file, write_bytes, write_json
from paramgolf.progress import say, track

MODEL_NAME = "tokenizer.model"


@dataclass(frozen=True, slots=True)
class SplitDocuments:
    """A split's file of documents, and what the manifest says of it."""

    split: str
    path: Path
    entry: dict[str, Any]


def retokenize(
    config: TokenizerConfig,
    workers: int,
    raw: str | Path = RAW_PATH,
    folder: str | Path = TOKENS_PATH,
) -> dict[str, Any]:
    """Fill `folder` with shards of what lies in `raw`; return the manifest written there.

    Documents are encoded by `workers` processes (0: one a core); the bytes do not depend on their
    number. Published shards are checked and linked, and their validation bytes counted.
    """
    raw, folder = Path(raw), fresh_folder(folder)
    source = read_manifest(raw)
    if source["kind"] == "shards":
        model = _take_model(raw / source["tokenizer"]["file"], folder, config)
        content = adopt_shards(source, raw, folder, model)
    else:
        model = _make_model(config, source, raw, folder)
        content = {}
        for split in ("val", "train"):
            documents = SplitDocuments(split, raw / source[split]["file"], source[split])
            content |= _write_split(documents, folder, config.shard_tokens, workers)
    manifest = content | {
        "schema": SCHEMA,
        "vocab_size": model.vocab_size(),
        "bos": model.bos_id(),
        "tokenizer": MODEL_NAME,
        "tokenizer_sha256": sha256_file(folder / MODEL_NAME),
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def _make_model(
    config: TokenizerConfig, source: dict[str, Any], raw: Path, folder: Path
) -> sentencepiece.SentencePieceProcessor:
    """Train a tokenizer on training text alone, or take the user's."""
    if config.source == "published":
        fix = "set tokenizer.source to train or file"
        raise ParamGolfError("documents come without a published tokenizer", where=raw, fix=fix)
    if config.source == "file":
        assert config.path is not None
        return _take_model(locate(config.path), folder, config)
    train = source["train"]
    texts = draw_texts(
        read_lines(raw / train["file"]),
        total_bytes=train["bytes"],
        limit_bytes=config.training_bytes,
    )
    say(f"training a tokenizer of {config.vocab_size} pieces")
    write_bytes(folder / MODEL_NAME, train_tokenizer(texts, config.vocab_size))
    return load_tokenizer(folder / MODEL_NAME)


def _take_model(
    path: Path, folder: Path, config: TokenizerConfig
) -> sentencepiece.SentencePieceProcessor:
    model = load_tokenizer(path)
    byte_table(model)  # refuses a model whose bytes cannot be counted
    if model.vocab_size() != config.vocab_size:
        raise ParamGolfError(
            "the tokenizer has another size than tokenizer.vocab_size",
            where=path,
            expected=config.vocab_size,
            found=model.vocab_size(),
            fix=f"set tokenizer.vocab_size to {model.vocab_size()}",
        )
    shutil.copyfile(path, folder / MODEL_NAME)
    return model


def _write_split(
    source: SplitDocuments, folder: Path, shard_tokens: int, workers: int
) -> dict[str, Any]:
    """Write the shards of a split, and for `val` its byte counts; return their manifest entries."""
    name, count_bytes = source.split, source.split == "val"
    documents = byte_total = 0
    encoded = encode_documents(
        read_lines(source.path), folder / MODEL_NAME, workers=workers, count_bytes=count_bytes
    )
    batches = -(-source.entry["bytes"] // BATCH_BYTES)
    with (
        ShardWriter(folder, name, shard_tokens) as tokens,
        ShardWriter(folder, f"{name}_bytes", shard_tokens) as counts,
    ):
        for part in track(encoded, f"tokens of {name}", total=batches):
            tokens.append(part.tokens)
            documents += part.documents
            if part.counts is not None:
                counts.append(part.counts)
                byte_total += int(part.counts.sum(dtype=np.int64))
    if documents != source.entry["documents"]:
        raise ParamGolfError(
            "a file of documents is cut short",
            where=source.path,
            expected=f"{source.entry['documents']} documents",
            found=documents,
            fix="make it again with `dvc repro -f -s download`",
        )
    content = {name: {"files": tokens.entries, "tokens": tokens.total, "documents": documents}}
    if count_bytes:
        content["val_bytes"] = {"files": counts.entries, "bytes": byte_total, "rule": TABLE_RULE}
    return content

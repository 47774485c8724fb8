"""From data/raw to data/tokens: a tokenizer, shards, and the bytes of every validation token."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from paramgolf.data.caseops import MARKS, encode_case
from paramgolf.data.config import TokenizerConfig
from paramgolf.data.documents import RAW_PATH, read_lines, read_manifest
from paramgolf.data.encode import BATCH_BYTES, encode_documents
from paramgolf.data.folders import fresh_folder, locate
from paramgolf.data.published import adopt_shards
from paramgolf.data.shards import ShardWriter
from paramgolf.data.special_tokens import BOS
from paramgolf.data.token_set import SCHEMA, TOKENS_PATH
from paramgolf.data.tokenizer import TokenizerFile, open_tokenizer
from paramgolf.data.tokenizer_training import draw_texts, train_tokenizer
from paramgolf.data.vocabulary_sentencepiece import SentencePieceVocabulary
from paramgolf.errors import ParamGolfError
from paramgolf.files import sha256_file, write_bytes, write_json
from paramgolf.progress import say, track


@dataclasses.dataclass(frozen=True, slots=True)
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
    file = _place_tokenizer(config, source, raw, folder)
    tokenizer = open_tokenizer(file)
    content: dict[str, Any] = {}
    if source["kind"] == "shards":
        content = adopt_shards(source, raw, folder, _published(file))
    else:
        for split in ("val", "train"):
            documents = SplitDocuments(split, raw / source[split]["file"], source[split])
            content |= _write_split(documents, file, tokenizer.rule, config.shard_tokens, workers)
    manifest = content | {
        "schema": SCHEMA,
        "vocab_size": tokenizer.size,
        "bos": BOS,
        "tokenizer": Path(file.path).name,
        "tokenizer_sha256": sha256_file(file.path),
        "tokenizer_bos": tokenizer.own_bos,
        "transform": config.transform,
        "fuse_markers": config.fuse_markers,
        "aliases": tokenizer.fusion.aliases if tokenizer.fusion else [],
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def _place_tokenizer(
    config: TokenizerConfig, source: dict[str, Any], raw: Path, folder: Path
) -> TokenizerFile:
    """Put a tokenizer into `folder`: the published one, the user's, or one trained on the text."""
    if source["kind"] == "shards":
        return _take(raw / source["tokenizer"]["file"], folder, config)
    if config.source == "published":
        fix = "set tokenizer.source to train or file"
        raise ParamGolfError("documents come without a published tokenizer", where=raw, fix=fix)
    if config.source == "file":
        assert config.path is not None
        return _take(locate(config.path), folder, config)
    train = source["train"]
    texts = draw_texts(
        read_lines(raw / train["file"]),
        total_bytes=train["bytes"],
        limit_bytes=config.training_bytes,
    )
    caseops = config.transform == "caseops"
    say(f"training a tokenizer of {config.vocab_size} pieces")
    path = folder / "tokenizer.model"
    write_bytes(
        path,
        train_tokenizer(
            map(encode_case, texts) if caseops else texts,
            config.vocab_size,
            symbols=MARKS if caseops else "",
        ),
    )
    return TokenizerFile(str(path), config.transform, config.fuse_markers)


def _take(given: Path, folder: Path, config: TokenizerConfig) -> TokenizerFile:
    """Copy a given tokenizer into `folder`; one of another size than `config` says is refused."""
    file = TokenizerFile(str(given), config.transform, config.fuse_markers)
    size = open_tokenizer(file).size  # refuses a tokenizer whose bytes cannot be counted
    if size != config.vocab_size:
        raise ParamGolfError(
            "the tokenizer has another size than tokenizer.vocab_size",
            where=given,
            expected=config.vocab_size,
            found=size,
            fix=f"set tokenizer.vocab_size to {size}",
        )
    path = folder / f"tokenizer{given.suffix}"
    shutil.copyfile(given, path)
    return dataclasses.replace(file, path=str(path))


def _published(file: TokenizerFile) -> SentencePieceVocabulary:
    """Open the tokenizer of published shards; their BOS and case transform must be those stated."""
    vocabulary = SentencePieceVocabulary(
        Path(file.path), transform=file.transform, fuse_markers=file.fuse_markers
    )
    if vocabulary.bos != BOS:
        raise ParamGolfError(
            "the published shards have another BOS",
            expected=f"token {BOS}",
            found=f"token {vocabulary.bos}",
            fix="take the documents (data.hub.kind) and this tokenizer as a file",
        )
    if file.transform == "none" and vocabulary.has_marks:
        raise ParamGolfError(
            "the published tokens are those of a case transform (#1729)",
            expected="tokenizer.transform caseops",
            found=file.transform,
            fix="set tokenizer.transform to caseops",
        )
    return vocabulary


def _write_split(
    source: SplitDocuments, tokenizer: TokenizerFile, rule: str, shard_tokens: int, workers: int
) -> dict[str, Any]:
    """Write the shards of a split, and for `val` its byte counts; return their manifest entries."""
    name, count_bytes = source.split, source.split == "val"
    folder = Path(tokenizer.path).parent
    documents = byte_total = 0
    encoded = encode_documents(
        read_lines(source.path), tokenizer, workers=workers, count_bytes=count_bytes
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
        content["val_bytes"] = {"files": counts.entries, "bytes": byte_total, "rule": rule}
    return content

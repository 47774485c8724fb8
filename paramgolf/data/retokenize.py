"""From data/raw to data/tokens: a tokenizer, shards, and the bytes of every validation token."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from paramgolf.data.config import TokenizerConfig
from paramgolf.data.documents import RAW_PATH, read_lines
from paramgolf.data.folders import fresh_folder, locate
from paramgolf.data.manifests import (
    FIX_RAW,
    SCHEMA,
    DocumentsFile,
    RawManifest,
    ShardFile,
    ShardManifest,
    ShardSplit,
    TokensManifest,
    read_raw_manifest,
    write_manifest,
)
from paramgolf.data.published import adopt_shards
from paramgolf.data.shards import ShardWriter, byte_counts
from paramgolf.data.special_tokens import BOS, MARKS
from paramgolf.data.token_set import TOKENS_PATH
from paramgolf.data.tokenizer.caseops import transformed
from paramgolf.data.tokenizer.encode import encode_documents
from paramgolf.data.tokenizer.text_tokenizer import TokenizerFile, open_tokenizer
from paramgolf.data.tokenizer.training import draw_texts, train_tokenizer
from paramgolf.errors import ParamGolfError
from paramgolf.files import sha256_file, write_bytes
from paramgolf.progress import say, track


def retokenize(
    config: TokenizerConfig,
    workers: int,
    raw: str | Path = RAW_PATH,
    folder: str | Path = TOKENS_PATH,
) -> TokensManifest:
    """Fill `folder` with shards of what lies in `raw`; return the manifest written there.

    Documents are encoded by `workers` processes (0: one a core); the bytes do not depend on their
    number. Published shards are checked and linked, and their validation bytes counted.
    """
    raw, folder = Path(raw), fresh_folder(folder)
    source = read_raw_manifest(raw)
    file = _place_tokenizer(config, source, raw, folder)
    tokenizer = open_tokenizer(file)
    if isinstance(source, ShardManifest):
        train, val, val_bytes = adopt_shards(source, raw, folder, file)
    else:
        writer = SplitWriter(file, config.shard_tokens, workers)
        val, counts = writer.write(raw, source.val, "val", count_bytes=True)
        train, _ = writer.write(raw, source.train, "train")
        val_bytes = byte_counts(folder, counts, tokenizer.rule)
    manifest = TokensManifest(
        schema=SCHEMA,
        vocab_size=tokenizer.size,
        bos=BOS,
        tokenizer=Path(file.path).name,
        tokenizer_sha256=sha256_file(file.path),
        tokenizer_bos=tokenizer.own_bos,
        transform=config.transform,
        train=train,
        val=val,
        val_bytes=val_bytes,
    )
    write_manifest(folder, manifest)
    return manifest


def _place_tokenizer(
    config: TokenizerConfig, source: RawManifest, raw: Path, folder: Path
) -> TokenizerFile:
    """Put a tokenizer into `folder`: the published one, the user's, or one trained on the text."""
    if isinstance(source, ShardManifest):
        return _take(raw / source.tokenizer.file, folder, config)
    if config.source == "published":
        fix = "set tokenizer.source to train or file"
        raise ParamGolfError("documents come without a published tokenizer", where=raw, fix=fix)
    if config.source == "file":
        assert config.path is not None
        return _take(locate(config.path), folder, config)
    texts = draw_texts(
        read_lines(raw / source.train.file),
        total_bytes=source.train.bytes,
        limit_bytes=config.training_bytes,
    )
    say(f"training a tokenizer of {config.vocab_size} pieces")
    path = folder / "tokenizer.model"
    write_bytes(
        path,
        train_tokenizer(
            (transformed(text, config.transform) for text in texts),
            config.vocab_size,
            symbols="" if config.transform == "none" else MARKS,
        ),
    )
    return TokenizerFile(str(path), config.transform)


def _take(given: Path, folder: Path, config: TokenizerConfig) -> TokenizerFile:
    """Copy a given tokenizer into `folder`; one of another size than `config` says is refused."""
    file = TokenizerFile(str(given), config.transform)
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


@dataclasses.dataclass(frozen=True, slots=True)
class SplitWriter:
    """Encodes documents by one tokenizer into the shards of the folder that it lies in."""

    tokenizer: TokenizerFile
    shard_tokens: int
    workers: int

    def write(
        self, raw: Path, source: DocumentsFile, name: str, *, count_bytes: bool = False
    ) -> tuple[ShardSplit, tuple[ShardFile, ...]]:
        """Write the shards of split `name`; return them, and those of its byte counts if asked."""
        folder = Path(self.tokenizer.path).parent
        lines, documents = read_lines(raw / source.file), 0
        encoded = encode_documents(
            lines, self.tokenizer, workers=self.workers, count_bytes=count_bytes
        )
        with (
            ShardWriter(folder, name, self.shard_tokens) as tokens,
            ShardWriter(folder, f"{name}_bytes", self.shard_tokens) as counts,
        ):
            for part in track(
                encoded, f"tokens of {name}", total=source.documents, size=lambda p: p.documents
            ):
                tokens.append(part.tokens)
                documents += part.documents
                if part.counts is not None:
                    counts.append(part.counts)
        if documents != source.documents:
            raise ParamGolfError(
                "a file of documents is cut short",
                where=raw / source.file,
                expected=f"{source.documents} documents",
                found=documents,
                fix=FIX_RAW,
            )
        total = sum(file.tokens for file in tokens.files)
        return ShardSplit(files=tokens.files, tokens=total, documents=documents), counts.files

"""The manifests of data/raw and data/tokens, typed: what download and retokenize wrote there.

Every hash, count and name in them is checked when they are read, so that the stages behind can
rely on them; a kind or a rule that is not known here is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from paramgolf.data.special_tokens import Transform
from paramgolf.files import read_json, write_json
from paramgolf.schema import Fault, FileName, Natural, Range, Sha256, read_record

SCHEMA = 1
FIX_RAW = "make it again with `dvc repro -f -s download`"
FIX_TOKENS = "make it with `dvc repro retokenize`, or name its folder: train_gpt.py takes --data"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DocumentsFile:
    """What a manifest says of a split's file of documents."""

    file: FileName
    documents: Natural
    bytes: Natural
    """Of the texts in UTF-8."""
    sha256: Sha256
    """Of the file."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """A file of a repository; the hub names the hash of large files alone."""

    path: str
    bytes: Natural
    sha256: Sha256 | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextManifest:
    """manifest.json of data/raw where it holds documents; the last fields are of its source."""

    schema: Natural
    kind: Literal["documents"]
    source: Literal["sample", "files", "hub"]
    train: DocumentsFile
    val: DocumentsFile
    skipped: dict[str, Natural]
    """Documents left out, by kind of fault."""
    validation_files: tuple[str, ...]
    files: tuple[str, ...] | None = None
    versions: dict[str, str] | None = None
    repository: str | None = None
    revision: str | None = None
    commit: str | None = None
    published: PublishedFile | None = None

    @property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file beside the manifest, by name."""
        return {file.file: file.sha256 for file in (self.train, self.val)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """What a manifest says of a shard."""

    name: FileName
    tokens: Natural
    sha256: Sha256


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardSplit:
    """What a manifest says of the shards of a split."""

    files: tuple[ShardFile, ...]
    tokens: Natural
    documents: Natural | None = None
    """Where something promises their number."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTokenizer:
    """The tokenizer that came with published shards."""

    file: FileName
    published: str
    """Its path in the repository."""
    sha256: Sha256


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardManifest:
    """manifest.json of data/raw where it holds published shards."""

    schema: Natural
    kind: Literal["shards"]
    source: Literal["hub"]
    repository: str
    revision: str
    commit: str
    variant: str
    tokenizer: PublishedTokenizer
    train: ShardSplit
    val: ShardSplit
    val_bytes: ShardSplit

    @property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file beside the manifest, by name."""
        shards = _shard_hashes(self.train, self.val, self.val_bytes)
        return {self.tokenizer.file: self.tokenizer.sha256, **shards}


RawManifest = TextManifest | ShardManifest

# what the byte counts of validation tokens were made from
TABLE_RULE = "token table, at most the bytes of the document's text"
OFFSETS_RULE = "offsets of the tokens, at most the bytes of the document's text"
SIDECAR_RULE = "published sidecar, at most the bytes of the decoded text"
RULES = (TABLE_RULE, OFFSETS_RULE, SIDECAR_RULE)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ByteCounts:
    """What a manifest says of the byte counts of validation tokens."""

    files: tuple[ShardFile, ...]
    bytes: Natural
    """Their sum."""
    rule: str

    def faults(self) -> Iterator[Fault]:
        """Yield a rule that is none of RULES: audit would not know how to count again."""
        if self.rule not in RULES:
            yield "rule", f"must be one of: {'; '.join(RULES)}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokensManifest:
    """manifest.json of data/tokens."""

    schema: Natural
    vocab_size: Annotated[int, Range(1, 2**16)]
    bos: Literal[1]
    tokenizer: FileName
    tokenizer_sha256: Sha256
    tokenizer_bos: Natural
    """What the tokenizer calls BOS; in the shards this id and 1 have changed places."""
    transform: Transform
    train: ShardSplit
    val: ShardSplit
    val_bytes: ByteCounts

    @property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file beside the manifest, by name."""
        shards = _shard_hashes(self.train, self.val, self.val_bytes)
        return {self.tokenizer: self.tokenizer_sha256, **shards}


def _shard_hashes(*splits: ShardSplit | ByteCounts) -> dict[str, str]:
    return {file.name: file.sha256 for split in splits for file in split.files}


def write_manifest(folder: str | Path, manifest: Any) -> None:
    """Write a manifest as manifest.json of its folder; fields that are None are left out."""
    write_json(Path(folder) / "manifest.json", _without_none(dataclasses.asdict(manifest)))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list | tuple) else value


def read_raw_manifest(folder: str | Path) -> RawManifest:
    """Read manifest.json of what download wrote."""
    path = Path(folder) / "manifest.json"
    kind = read_json(path, fix=FIX_RAW).get("kind")
    if kind == "shards":
        return read_record(ShardManifest, path, version=SCHEMA, fix=FIX_RAW)
    return read_record(TextManifest, path, version=SCHEMA, fix=FIX_RAW)


def read_tokens_manifest(folder: str | Path) -> TokensManifest:
    """Read manifest.json of what retokenize wrote."""
    return read_record(
        TokensManifest, Path(folder) / "manifest.json", version=SCHEMA, fix=FIX_TOKENS
    )

"""What download takes from a Hugging Face repository: a file of documents, or a variant's shards.

A variant's shards lie in a folder fineweb10B_VARIANT as fineweb_{train,val,val_bytes}_NNNNNN.bin. A
manifest.json above the folder, where there is one, names the tokenizer and promises the numbers of
files, documents and tokens; without one the tokenizer is found by its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from paramgolf.data.config import HubConfig
from paramgolf.data.folders import link_or_copy
from paramgolf.data.manifests import (
    SCHEMA,
    PublishedFile,
    PublishedTokenizer,
    ShardFile,
    ShardManifest,
    ShardSplit,
)
from paramgolf.data.shards import read_shard
from paramgolf.data.source.hub import Repository
from paramgolf.errors import ParamGolfError
from paramgolf.files import read_json, sha256_file
from paramgolf.schema import Foreign, Natural, parse

SHARD = re.compile(
    r"(?P<folder>(.*/)?fineweb10B_(?P<variant>[^/]+))"
    r"/fineweb_(?P<split>train|val|val_bytes)_(?P<number>[0-9]{1,9})\.bin"
)
OTHER_REVISION = "take another data.hub.revision"


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A fetched file of documents, and where it came from."""

    local: Path
    commit: str
    published: PublishedFile


def fetch_documents(config: HubConfig) -> FetchedFile:
    """Fetch `documents_file`.

    A bare name is found in whatever folder of the repository it lies, the uppermost first.
    """
    repository = Repository(config.repository, config.revision)
    paths = [p for p in repository.files if PurePosixPath(p).name == config.documents_file]
    path = min(paths, key=lambda p: (p.count("/"), p), default=config.documents_file)
    local = repository.fetch(path)
    file = repository.files[path]
    published = PublishedFile(path=path, bytes=file.size, sha256=file.sha256)
    return FetchedFile(local, repository.commit, published)


def fetch_shards(config: HubConfig, folder: Path) -> ShardManifest:
    """Fetch the first `train_shards` training shards and the whole validation split of a variant.

    Files go to `folder` under their published names, the tokenizer as tokenizer.model. Returns the
    manifest of data/raw. Sizes, hashes, headers and promised numbers are checked.
    """
    repository = Repository(config.repository, config.revision)
    variant = find_variant(repository, config.variant)
    if len(variant.shards["train"]) < config.train_shards:
        raise ParamGolfError(
            "the variant has fewer training shards than asked",
            where=f"{config.repository}: {config.variant}",
            expected=f"{config.train_shards} (data.hub.train_shards)",
            found=len(variant.shards["train"]),
            fix=f"set data.hub.train_shards to {len(variant.shards['train'])} or less",
        )
    model, promised = _promises(repository, variant.folder, config.variant)
    model = model or _guess_tokenizer(repository, config.variant)
    train = _fetch_split(repository, variant.shards["train"][: config.train_shards], folder)
    val = _fetch_split(repository, variant.shards["val"], folder)
    val_bytes = _fetch_split(repository, variant.shards["val_bytes"], folder)
    _check_promises(promised, val, where=f"{config.repository}: {config.variant}")
    link_or_copy(repository.fetch(model), folder / "tokenizer.model")
    return ShardManifest(
        schema=SCHEMA,
        kind="shards",
        source="hub",
        repository=config.repository,
        revision=config.revision,
        commit=repository.commit,
        variant=config.variant,
        tokenizer=PublishedTokenizer(
            file="tokenizer.model",
            published=model,
            sha256=sha256_file(folder / "tokenizer.model"),
        ),
        train=train,
        val=replace(val, documents=promised.docs_val),
        val_bytes=val_bytes,
    )


@dataclass(frozen=True, slots=True)
class Variant:
    """The files of a published token set."""

    folder: PurePosixPath
    shards: dict[str, list[str]]
    """Paths of each split, by number."""


def find_variant(repository: Repository, name: str) -> Variant:
    """Return the files of a variant; one that lies in two folders, or has gaps, is refused."""
    where = f"{repository.name} at {repository.commit}"
    shards = [match for path in repository.files if (match := SHARD.fullmatch(path))]
    own = sorted((m for m in shards if m["variant"] == name), key=lambda m: int(m["number"]))
    if not own:
        known = ", ".join(sorted({m["variant"] for m in shards}))
        raise ParamGolfError(
            f"the repository has no variant `{name}`",
            where=where,
            expected=f"one of: {known or 'none; it holds no shards'}",
            fix="set data.hub.variant",
        )
    folders = sorted({m["folder"] for m in own})
    if len(folders) > 1:  # two shards would go under one name
        what, found = f"the variant `{name}` lies in {len(folders)} folders", ", ".join(folders)
        raise ParamGolfError(what, where=where, found=found, fix=OTHER_REVISION)
    paths = {}
    for split in ("train", "val", "val_bytes"):
        files = [m for m in own if m["split"] == split]
        numbers = [int(m["number"]) for m in files]
        if numbers and numbers != [*range(numbers[0], numbers[0] + len(numbers))]:
            what = f"the {split} shards of `{name}` are not numbered without gaps"
            raise ParamGolfError(what, where=where, found=_shortened(numbers), fix=OTHER_REVISION)
        paths[split] = [m.string for m in files]
    if not paths["val"]:
        raise ParamGolfError(f"the variant `{name}` has no validation shards", where=where)
    return Variant(PurePosixPath(folders[0]), paths)


def _shortened(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats(Foreign):
    """The numbers that a repository's manifest promises of a variant."""

    docs_val: Natural | None = None
    files_val: Natural | None = None
    tokens_val: Natural | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset(Foreign):
    """A variant, as a repository's manifest lists it."""

    name: str
    tokenizer_name: str | None = None
    stats: Stats = Stats()


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Foreign):
    """A tokenizer, as a repository's manifest lists it."""

    name: str
    model_path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryManifest(Foreign):
    """The manifest.json that publishers put above their shards, as far as it is used."""

    datasets: tuple[Dataset, ...] = ()
    tokenizers: tuple[Model, ...] = ()


def _promises(
    repository: Repository, home: PurePosixPath, variant: str
) -> tuple[str | None, Stats]:
    """Return what the manifest nearest above the shards says of a variant; nothing without one.

    That is its tokenizer's path in the repository, and the numbers of its validation split.
    """
    above = [str(parent / "manifest.json") for parent in home.parents]
    path = next((path for path in above if path in repository.files), None)
    if path is None:
        return None, Stats()
    where = f"{repository.name} at {repository.commit}: {path}"
    content = read_json(repository.fetch(path), fix=OTHER_REVISION)
    manifest = parse(
        RepositoryManifest, content, "", where=where, of="the manifest", fix=OTHER_REVISION
    )
    named = {dataset.name: dataset for dataset in manifest.datasets}
    dataset = named.get(f"fineweb10B_{variant}", Dataset(name=variant))
    models = {model.name: model.model_path for model in manifest.tokenizers}
    model = models.get(dataset.tokenizer_name or "")
    return str(PurePosixPath(path).parent / model) if model else None, dataset.stats


def _guess_tokenizer(repository: Repository, variant: str) -> str:
    """Find the model of a variant spVOCAB_TAIL: its name holds VOCAB and ends with TAIL."""
    match = re.fullmatch(r"sp(\d+)(.*)", variant)
    models = sorted(path for path in repository.files if path.endswith(".model"))
    if match:
        size, tail = match.groups()
        fitting = [
            path
            for path in models
            if re.search(rf"(?<!\d){size}(?!\d)", PurePosixPath(path).stem)
            and PurePosixPath(path).stem.endswith(tail)
        ]
        if fitting:
            return min(fitting, key=len)
    raise ParamGolfError(
        f"no SentencePiece model belongs to the variant `{variant}`",
        where=f"{repository.name} at {repository.commit}",
        found=", ".join(models) or "no .model file",
        fix="take another variant, or the documents (data.hub.kind) and a tokenizer of your own",
    )


def _fetch_split(repository: Repository, paths: Sequence[str], folder: Path) -> ShardSplit:
    files = []
    for path, local in zip(paths, repository.fetch_all(paths), strict=True):
        target = folder / PurePosixPath(path).name
        link_or_copy(local, target)
        tokens = len(read_shard(target))
        # of a large file the hub's hash has been checked
        sha256 = repository.files[path].sha256 or sha256_file(target)
        files.append(ShardFile(name=target.name, tokens=tokens, sha256=sha256))
    return ShardSplit(files=tuple(files), tokens=sum(file.tokens for file in files))


def _check_promises(promised: Stats, val: ShardSplit, *, where: str) -> None:
    """Refuse a validation split with other numbers than the manifest promises (pg#1923)."""
    for key, expected, found in (
        ("files_val", promised.files_val, len(val.files)),
        ("tokens_val", promised.tokens_val, val.tokens),
    ):
        if expected is not None and expected != found:
            raise ParamGolfError(
                "the validation split is not what the repository's manifest promises",
                where=where,
                expected=f"{key} {expected}",
                found=found,
                fix=OTHER_REVISION,
            )

"""What download takes from a Hugging Face repository: a file of documents, or a variant's shards.

A variant's shards lie in a folder fineweb10B_VARIANT as fineweb_{train,val,val_bytes}_NNNNNN.bin. A
manifest.json above the folder, where there is one, names the tokenizer and promises the numbers of
files, documents and tokens; without one the tokenizer is found by its name.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from paramgolf.data.config import HubConfig
from paramgolf.data.folders import link_or_copy
from paramgolf.data.hub import Repository
from paramgolf.data.shards import read_shard
from paramgolf.errors import ParamGolfError
from paramgolf.files import sha256_file

SHARD = re.compile(
    r"(?P<folder>(.*/)?fineweb10B_(?P<variant>[^/]+))/fineweb_(?P<split>train|val|val_bytes)_\d+\.bin"
)
SPLITS = ("train", "val", "val_bytes")
Layout = dict[str, list[str]]


def fetch_documents(config: HubConfig) -> tuple[Path, dict[str, Any]]:
    """Fetch `documents_file`; return its local path and what the manifest says of its origin.

    A bare name is found in whatever folder of the repository it lies, the uppermost first.
    """
    repository = Repository(config.repository, config.revision)
    paths = [p for p in repository.files if PurePosixPath(p).name == config.documents_file]
    path = min(paths, key=lambda p: (p.count("/"), p), default=config.documents_file)
    local = repository.fetch(path)
    file = repository.files[path]
    origin = {
        "repository": config.repository,
        "revision": config.revision,
        "commit": repository.commit,
        "published": {"path": path, "bytes": file.size, "sha256": file.sha256},
    }
    return local, origin


def fetch_shards(config: HubConfig, folder: Path) -> dict[str, Any]:
    """Fetch the first `train_shards` training shards and the whole validation split of a variant.

    Files go to `folder` under their published names, the tokenizer as tokenizer.model. Returns the
    manifest of data/raw. Sizes, hashes, headers and promised numbers are checked.
    """
    repository = Repository(config.repository, config.revision)
    layout, home = find_variant(repository, config.variant)
    if len(layout["train"]) < config.train_shards:
        raise ParamGolfError(
            "the variant has fewer training shards than asked",
            where=f"{config.repository}: {config.variant}",
            expected=f"{config.train_shards} (data.hub.train_shards)",
            found=len(layout["train"]),
            fix=f"set data.hub.train_shards to {len(layout['train'])} or less",
        )
    layout["train"] = layout["train"][: config.train_shards]
    promised = _promises(repository, home, config.variant)
    model = promised.get("tokenizer") or _guess_tokenizer(repository, config.variant)
    content = {split: _fetch_split(repository, layout[split], folder) for split in SPLITS}
    _check_promises(promised, content["val"], where=f"{config.repository}: {config.variant}")
    content["val"]["documents"] = promised.get("docs_val")
    link_or_copy(repository.fetch(model), folder / "tokenizer.model")
    tokenizer = {
        "file": "tokenizer.model",
        "published": model,
        "sha256": sha256_file(folder / "tokenizer.model"),
    }
    return content | {
        "kind": "shards",
        "repository": config.repository,
        "revision": config.revision,
        "commit": repository.commit,
        "variant": config.variant,
        "tokenizer": tokenizer,
    }


def find_variant(repository: Repository, variant: str) -> tuple[Layout, PurePosixPath]:
    """Return the variant's paths of each split, in order, and their folder."""
    layouts: dict[str, Layout] = defaultdict(lambda: {split: [] for split in SPLITS})
    folders: dict[str, PurePosixPath] = {}
    for path in sorted(repository.files):
        if match := SHARD.fullmatch(path):
            layouts[match["variant"]][match["split"]].append(path)
            folders[match["variant"]] = PurePosixPath(match["folder"])
    if variant not in layouts:
        raise ParamGolfError(
            f"the repository has no variant `{variant}`",
            where=f"{repository.name} at {repository.commit}",
            expected=f"one of: {', '.join(sorted(layouts)) or 'none; it holds no shards'}",
            fix="set data.hub.variant",
        )
    if not layouts[variant]["val"]:
        where = f"{repository.name} at {repository.commit}"
        raise ParamGolfError(f"the variant `{variant}` has no validation shards", where=where)
    return layouts[variant], folders[variant]


def _promises(repository: Repository, home: PurePosixPath, variant: str) -> dict[str, Any]:
    """Return what the manifest nearest above the shards says of the variant; {} without one.

    Keys, each only where the manifest has it: tokenizer (its path in the repository), docs_val,
    files_val, tokens_val.
    """
    above = [parent / "manifest.json" for parent in home.parents]
    path = next((str(path) for path in above if str(path) in repository.files), None)
    if path is None:
        return {}
    manifest = json.loads(repository.fetch(path).read_bytes())
    named = {entry["name"]: entry for entry in manifest.get("datasets", [])}
    dataset = named.get(f"fineweb10B_{variant}", {})
    promised = dict(dataset.get("stats", {}))
    for tokenizer in manifest.get("tokenizers", []):
        if tokenizer["name"] == dataset.get("tokenizer_name") and "model_path" in tokenizer:
            promised["tokenizer"] = str(PurePosixPath(path).parent / tokenizer["model_path"])
    return promised


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


def _fetch_split(repository: Repository, paths: list[str], folder: Path) -> dict[str, Any]:
    entries = []
    for path in paths:
        target = folder / PurePosixPath(path).name
        link_or_copy(repository.fetch(path), target)
        entry = {"name": target.name, "tokens": len(read_shard(target))}
        entries.append(entry | {"sha256": sha256_file(target)})
    return {"files": entries, "tokens": sum(entry["tokens"] for entry in entries)}


def _check_promises(promised: dict[str, Any], val: dict[str, Any], *, where: str) -> None:
    """Refuse a validation split with other numbers than the manifest promises (#1923)."""
    for key, found in (("files_val", len(val["files"])), ("tokens_val", val["tokens"])):
        expected = promised.get(key, found)
        if expected != found:
            raise ParamGolfError(
                "the validation split is not what the repository's manifest promises",
                where=where,
                expected=f"{key} {expected}",
                found=found,
                fix="take another data.hub.revision",
            )

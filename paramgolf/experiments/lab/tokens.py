"""Tokens of a plan: made once for each tokenizer, by the stages, and kept."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramgolf.data.folders import link_or_copy
from paramgolf.data.manifests import read_tokens_manifest
from paramgolf.data.token_set import TOKENS_PATH
from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.plan import Text
from paramgolf.experiments.lab.stages import Place, Processes, environment_of, write_params
from paramgolf.files import sha256_file
from paramgolf.progress import say

MAKING = ("download", "retokenize")


@dataclass(frozen=True, slots=True)
class Made:
    """A folder of tokens; `key` is the hash of its manifest, which holds those of the shards."""

    folder: Path
    key: str
    train_tokens: int


def read_made(folder: Path) -> Made:
    """Return what is to know of a folder of tokens."""
    key = sha256_file(folder / "manifest.json")
    return Made(folder, key, read_tokens_manifest(folder).train.tokens)


class Tokens:
    """Folders of tokens under `folder`, by what they are made of."""

    def __init__(self, folder: Path, text: Text, processes: Processes, root: Path) -> None:
        self._folder, self._text = folder, text
        self._processes, self._root = processes, root

    def find(self, content: Mapping[str, Any]) -> Made | None:
        """Return the tokens of these parameters, None where they must be made."""
        if self._text.tokens is not None:
            return self._given(content["tokenizer"], self._root / self._text.tokens)
        folder = self._place(content).folder / TOKENS_PATH
        return read_made(folder) if (folder / "manifest.json").is_file() else None

    def take(self, content: Mapping[str, Any]) -> Made:
        """Return the tokens of these parameters; make them if need be."""
        return self.find(content) or self._make(content)

    def _given(self, tokenizer: Mapping[str, Any], folder: Path) -> Made:
        manifest = read_tokens_manifest(folder)
        for key in ("transform", "vocab_size"):
            if tokenizer[key] != getattr(manifest, key):
                raise ParamGolfError(
                    "a variant needs other tokens than those of the plan",
                    where=folder,
                    expected=f"tokenizer.{key} {tokenizer[key]}",
                    found=getattr(manifest, key),
                    fix="name text.files in the plan; each tokenizer gets its own tokens then",
                )
        return read_made(folder)

    def _files(self, data: Mapping[str, Any]) -> dict[str, list[Path]]:
        """Return the files of the text by the path, folder or glob that names them."""
        patterns = [*data["files"], *data["validation_files"]]
        return {one: [*_matches(self._root / one)] for one in patterns}

    def _place(self, content: Mapping[str, Any]) -> Place:
        data, tokenizer = {**content["data"], "hub": None}, content["tokenizer"]
        found = [path for paths in self._files(data).values() for path in paths]
        if tokenizer["source"] == "file":
            found += filter(Path.is_file, [self._root / tokenizer["path"]])
        # gigabytes are not hashed at each look; a file that is edited has another time
        status = [(path.name, path.stat()) for path in found]
        files = [(name, one.st_size, one.st_mtime_ns) for name, one in status]
        key = json.dumps([data, tokenizer, files], sort_keys=True)
        return Place(self._folder / hashlib.sha256(key.encode()).hexdigest()[:16])

    def _make(self, content: Mapping[str, Any]) -> Made:
        """Run download and retokenize; the tokenizer is a kept one, or is kept from then on."""
        if missing := [one for one, paths in self._files(content["data"]).items() if not paths]:
            raise ParamGolfError(
                "the plan's text is not here",
                where=", ".join(missing),
                fix="put it there, or name yours as text.files and text.validation_files",
            )
        place, tokenizer = self._place(content), dict(content["tokenizer"])
        kept = self._kept(tokenizer)
        say(f"lab: making tokens, {tokenizer['vocab_size']:,} pieces, {tokenizer['transform']}")
        shutil.rmtree(place.folder, ignore_errors=True)
        if kept is not None and kept.is_file():
            tokenizer |= {"source": "file", "path": str(kept.resolve())}
        write_params(place.folder, {**content, "tokenizer": tokenizer})
        environment = {**environment_of(place.folder, None), "DVC_ROOT": str(self._root.resolve())}
        for stage in MAKING:
            self._processes.run(stage, place, environment)
        shutil.rmtree(place.folder / "data/raw")
        folder = place.folder / TOKENS_PATH
        made = folder / read_tokens_manifest(folder).tokenizer
        if kept is not None and not kept.is_file() and made.suffix == kept.suffix:
            kept.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(made, kept)
        return read_made(folder)

    def _kept(self, tokenizer: Mapping[str, Any]) -> Path | None:
        """Return where the tokenizer is kept that would be trained, None where none would be."""
        if self._text.tokenizers is None or tokenizer["source"] != "train":
            return None
        return self._root / self._text.tokenizers / tokenizer_name(tokenizer)


def _matches(pattern: Path) -> Iterator[Path]:
    """Yield the files that a pattern names, in order; those of folders whatever their kind."""
    literal = os.path.lexists(pattern)
    for name in [str(pattern)] if literal else sorted(glob.glob(str(pattern), recursive=True)):
        inner = sorted(Path(name).rglob("*")) if os.path.isdir(name) else [Path(name)]
        yield from filter(Path.is_file, inner)


def tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """Return the file in which a tokenizer is kept: sp8192.model, sp8192_caseops.model."""
    transform = "" if tokenizer["transform"] == "none" else f"_{tokenizer['transform']}"
    return f"sp{tokenizer['vocab_size']}{transform}.model"

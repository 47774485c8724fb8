"""The folder that retokenize writes: shards, byte counts of validation tokens, a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paramgolf.data.shards import ShardStream
from paramgolf.errors import ParamGolfError
from paramgolf.files import read_json

TOKENS_PATH = Path("data/tokens")
SCHEMA = 1
FIX = "make it with `dvc repro retokenize`"


@dataclass(frozen=True, slots=True)
class TokenSet:
    """What is known of a folder of tokens; the streams open their files when asked."""

    folder: Path
    vocab_size: int
    bos: int
    train_files: tuple[str, ...]
    val_files: tuple[str, ...]
    val_bytes_files: tuple[str, ...]
    aliases: tuple[tuple[int, int, int], ...] = ()
    """(alias, space, mark) of each token that stands for a space and a case mark."""

    def train(self) -> ShardStream:
        """Open the training tokens; each document begins with BOS."""
        return self._open(self.train_files)

    def val(self) -> ShardStream:
        """Open the validation tokens; each document begins with BOS."""
        return self._open(self.val_files)

    def val_bytes(self) -> ShardStream:
        """Open the byte counts: value i is the bytes of text that validation token i stands for."""
        return self._open(self.val_bytes_files)

    def _open(self, names: tuple[str, ...]) -> ShardStream:
        return ShardStream([self.folder / name for name in names])


def open_tokens(folder: str | Path = TOKENS_PATH) -> TokenSet:
    """Read manifest.json of a folder of tokens.

    Keys read: schema, vocab_size, bos, {train, val, val_bytes}.files, a list of {name, ...}, and
    aliases, where there are any.
    """
    folder = Path(folder)
    manifest = read_json(folder / "manifest.json", fix=FIX)
    if manifest.get("schema") != SCHEMA:
        raise ParamGolfError(
            "a manifest of another version",
            where=folder / "manifest.json",
            expected=f"schema {SCHEMA}",
            found=manifest.get("schema"),
            fix=FIX,
        )
    names = {
        split: tuple(file["name"] for file in manifest[split]["files"])
        for split in ("train", "val", "val_bytes")
    }
    return TokenSet(
        folder,
        manifest["vocab_size"],
        manifest["bos"],
        names["train"],
        names["val"],
        names["val_bytes"],
        tuple((alias, space, mark) for alias, space, mark in manifest.get("aliases", [])),
    )

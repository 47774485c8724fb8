"""The folder that retokenize writes: shards, byte counts of validation tokens, a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paramgolf.data.manifests import ShardFile, TokensManifest, read_tokens_manifest
from paramgolf.data.shards import ShardStream

TOKENS_PATH = Path("data/tokens")


@dataclass(frozen=True, slots=True)
class TokenSet:
    """A folder of tokens by its manifest; the streams open their files when asked."""

    folder: Path
    manifest: TokensManifest

    @property
    def vocab_size(self) -> int:
        """All tokens are below it."""
        return self.manifest.vocab_size

    @property
    def scored_files(self) -> tuple[str, ...]:
        """Names of all files that a score is computed from: validation tokens and their bytes."""
        files = (*self.manifest.val.files, *self.manifest.val_bytes.files)
        return tuple(file.name for file in files)

    def first_train_files(self, tokens: int) -> tuple[str, ...]:
        """Return the names of the shards that hold the first so many training tokens."""
        names: list[str] = []
        for file in self.manifest.train.files:
            if tokens <= 0:
                break
            names.append(file.name)
            tokens -= file.tokens
        return tuple(names)

    def train(self) -> ShardStream:
        """Open the training tokens; each document begins with BOS."""
        return self._open(self.manifest.train.files)

    def val(self) -> ShardStream:
        """Open the validation tokens; each document begins with BOS."""
        return self._open(self.manifest.val.files)

    def val_bytes(self) -> ShardStream:
        """Open the byte counts: value i is the bytes of text that validation token i stands for."""
        return self._open(self.manifest.val_bytes.files)

    def _open(self, files: tuple[ShardFile, ...]) -> ShardStream:
        return ShardStream([self.folder / file.name for file in files])


def open_tokens(folder: str | Path = TOKENS_PATH) -> TokenSet:
    """Read the manifest of a folder of tokens."""
    return TokenSet(Path(folder), read_tokens_manifest(folder))

"""Token shards in the published format: 256 little-endian int32, then little-endian uint16 values.

header[0] = 20240520 (magic), header[1] = 1 (version), header[2] = number of values, the rest 0. The
same format holds the byte counts of validation tokens (val_bytes_NNNNNN.bin), one value per token.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from paramgolf.data.manifests import ByteCounts, ShardFile
from paramgolf.data.special_tokens import BOS
from paramgolf.errors import ParamGolfError
from paramgolf.files import atomic_open, file_size, sha256_file

MAGIC, VERSION, HEADER_VALUES = 20240520, 1, 256
HEADER_BYTES = 4 * HEADER_VALUES
BLOCK_TOKENS = 1 << 22
FIX = "fetch or make the shard again: `dvc repro -f -s retokenize`"


def header(count: int) -> bytes:
    """Return the header of a shard of `count` values."""
    values = np.zeros(HEADER_VALUES, dtype="<i4")
    values[:3] = MAGIC, VERSION, count
    return values.tobytes()


def read_shard(path: str | Path) -> np.ndarray:
    """Map a shard's values (read-only uint16 [n]) after checking magic, version and size."""
    path = Path(path)
    size = file_size(path, fix=FIX)
    begin = np.fromfile(path, dtype="<i4", count=HEADER_VALUES)
    if len(begin) < HEADER_VALUES or begin[0] != MAGIC or begin[1] != VERSION:
        found = f"{size} bytes that begin with {begin[:2].tolist()}"
        expected = f"a header of {HEADER_BYTES} bytes that begins with {[MAGIC, VERSION]}"
        raise ParamGolfError("not a shard", where=path, expected=expected, found=found, fix=FIX)
    count = int(begin[2])
    if size != HEADER_BYTES + 2 * count:
        expected = f"{HEADER_BYTES + 2 * count} bytes for the {count} values its header promises"
        raise ParamGolfError(
            "a shard is cut short or too long", where=path, expected=expected, found=size, fix=FIX
        )
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def byte_counts(folder: Path, files: tuple[ShardFile, ...], rule: str) -> ByteCounts:
    """Return what a manifest says of shards of byte counts, made by `rule`; their sum is read."""
    shards = (read_shard(folder / file.name) for file in files)
    total = sum(int(shard.sum(dtype=np.int64)) for shard in shards)
    return ByteCounts(files=files, bytes=total, rule=rule)


class ShardStream:
    """The values of several shards, read as one sequence."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._shards = [read_shard(path) for path in paths]
        self._starts = [0, *itertools.accumulate(len(shard) for shard in self._shards)]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return values start..stop as a fresh uint16 array; 0 <= start <= stop <= len."""
        assert 0 <= start <= stop <= len(self)
        parts = []
        index = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            offset = self._starts[index]
            part = self._shards[index][start - offset : stop - offset]
            parts.append(part)
            start += len(part)
            index += 1
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint16)


def split_documents(stream: ShardStream) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start, tokens) of each document, its BOS included; memory holds a block of tokens."""
    for begin, block in whole_documents(stream):
        starts = np.flatnonzero(block == BOS).tolist()
        for start, stop in zip(starts, [*starts[1:], len(block)], strict=True):
            yield begin + start, block[start:stop]


def whole_documents(stream: ShardStream) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start, tokens) of blocks that end where a document ends; all together the stream.

    A stream that does not begin with BOS is refused: its documents cannot be told apart (pg#1779).
    """
    if len(stream) and stream.read(0, 1)[0] != BOS:
        raise ParamGolfError(
            "a token stream does not begin with BOS (pg#1779)",
            expected=f"token {BOS} before each document",
            found=f"token {int(stream.read(0, 1)[0])}",
            fix="write the shards with BOS before each document: `dvc repro -f -s retokenize`",
        )
    held, begin = np.empty(0, dtype=np.uint16), 0
    for offset in range(0, len(stream), BLOCK_TOKENS):
        block = stream.read(offset, min(offset + BLOCK_TOKENS, len(stream)))
        held = np.concatenate([held, block])
        starts = np.flatnonzero(held == BOS)
        cut = int(starts[-1]) if len(starts) else 0
        if cut:
            yield begin, held[:cut]
        held, begin = held[cut:], begin + cut
    if len(held):
        yield begin, held


class ShardWriter:
    """Write a sequence of uint16 values into shards STEM_NNNNNN.bin of `capacity` values.

    Used as a context; `files` then is what a manifest says of each whole shard.
    Values go to the file at once, their count into its header at the end.
    """

    def __init__(self, folder: str | Path, stem: str, capacity: int) -> None:
        self.files: tuple[ShardFile, ...] = ()
        self._folder, self._stem, self._capacity = Path(folder), stem, capacity
        self._stack = contextlib.ExitStack()
        self._file: IO[bytes] | None = None
        self._count = 0

    def append(self, values: np.ndarray) -> None:
        """Add uint16 values; full shards are closed."""
        assert values.dtype == np.uint16
        while len(values):
            if self._file is None:
                self._file = self._stack.enter_context(atomic_open(self._path()))
                self._file.write(bytes(HEADER_BYTES))
            part, values = np.split(values, [self._capacity - self._count])
            self._file.write(part.astype("<u2", copy=False).tobytes())
            self._count += len(part)
            if self._count == self._capacity:
                self._finish()

    def _path(self) -> Path:
        return self._folder / f"{self._stem}_{len(self.files):06d}.bin"

    def _finish(self) -> None:
        if self._file is None:
            return
        path = self._path()
        self._file.seek(0)
        self._file.write(header(self._count))
        self._stack.close()
        file = ShardFile(name=path.name, tokens=self._count, sha256=sha256_file(path))
        self.files = (*self.files, file)
        self._file, self._count = None, 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._finish()
        self._stack.__exit__(*error)

"""Token shards in the published format: 256 little-endian int32, then little-endian uint16 values.

header[0] = 20240520 (magic), header[1] = 1 (version), header[2] = number of values, the rest 0. The
same format holds the byte counts of validation tokens (val_bytes_NNNNNN.bin), one value a token.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paramgolf.errors import ParamGolfError
from paramgolf.files import atomic_open

MAGIC, VERSION, HEADER_VALUES = 20240520, 1, 256
HEADER_BYTES = 4 * HEADER_VALUES
FIX = "fetch or make the shard again: `dvc repro -f -s retokenize`"


def write_shard(path: str | Path, values: np.ndarray) -> None:
    """Write a one-dimensional array as a shard, atomically; values must fit in uint16."""
    if values.dtype != np.uint16 and values.size and not 0 <= values.min() <= values.max() < 2**16:
        raise ParamGolfError("a shard holds uint16 values", where=path, found=int(values.max()))
    with atomic_open(path) as file:
        file.write(header(len(values)))
        file.write(np.ascontiguousarray(values, dtype="<u2").tobytes())


def header(count: int) -> bytes:
    """Return the header of a shard of `count` values."""
    values = np.zeros(HEADER_VALUES, dtype="<i4")
    values[:3] = MAGIC, VERSION, count
    return values.tobytes()


def read_shard(path: str | Path) -> np.ndarray:
    """Map a shard's values (read-only uint16 [n]) after checking magic, version and size."""
    path = Path(path)
    try:
        size = path.stat().st_size
        begin = np.fromfile(path, dtype="<i4", count=HEADER_VALUES)
    except FileNotFoundError:
        raise ParamGolfError("a shard is missing", where=path, fix=FIX) from None
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


class Stream:
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

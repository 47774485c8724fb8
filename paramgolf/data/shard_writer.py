"""Writing shards as values come, in memory that does not grow with them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from paramgolf.data.shards import HEADER_BYTES, header
from paramgolf.files import atomic_open, sha256_file


class ShardWriter:
    """Write a sequence of uint16 values into shards STEM_NNNNNN.bin of `capacity` values.

    Used as a context; `entries` then lists {name, tokens, sha256} of each shard for a manifest.
    Values go to the file at once, their count into its header at the end.
    """

    def __init__(self, folder: str | Path, stem: str, capacity: int) -> None:
        self.entries: list[dict[str, Any]] = []
        self.total = 0
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
        return self._folder / f"{self._stem}_{len(self.entries):06d}.bin"

    def _finish(self) -> None:
        if self._file is None:
            return
        path = self._path()
        self._file.seek(0)
        self._file.write(header(self._count))
        self._stack.close()
        entry = {"name": path.name, "tokens": self._count, "sha256": sha256_file(path)}
        self.entries.append(entry)
        self.total += self._count
        self._file, self._count = None, 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._finish()
        self._stack.__exit__(*error)

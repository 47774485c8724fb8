"""Shards and folders of tokens, written for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paramgolf.data.shards import header
from paramgolf.files import write_bytes


def write_shard(path: Path, values: np.ndarray) -> None:
    """Write values as one shard under a name of its own."""
    assert 0 <= values.min(initial=0) <= values.max(initial=0) < 2**16
    write_bytes(path, header(len(values)) + values.astype("<u2").tobytes())

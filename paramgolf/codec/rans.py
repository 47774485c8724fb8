"""An entropy coder for quantised integers: rANS (arXiv 1311.2540), one state a column, in numpy.

Rows of integers are decoded one after another, all columns at once. An integer's chances depend on
how large those above it in its column were: a running mean of magnitudes falls into one of
CONTEXTS classes, each with a table of frequencies that the data carries. See docs/container.md.
"""

from __future__ import annotations

import struct

import numpy as np

from paramgolf.codec.codecs import decompress
from paramgolf.errors import ParamGolfError

CONTEXTS = 16
BITS = 14  # the frequencies of a context add up to 2^14
LOWEST = 2**16  # states lie in 2^16..2^32; words of 16 bits fill them up
HEADER = struct.Struct("<III")  # columns, the first mean, compressed bytes of the tables
TABLES = np.dtype([("limits", "<u2", CONTEXTS - 1), ("frequencies", "<u2", (CONTEXTS, 256))])
MAX_ROWS = 2**17
MEANS = 2**15  # a mean of magnitudes 0..128, times 256
CLASS_SHIFT = 4  # means are told apart in steps of 1/16


def decode(data: bytes, size: int) -> bytes:
    """Return the `size` int8 that `data` stands for; whatever is wrong is a ParamGolfError."""
    if len(data) < HEADER.size:
        raise ParamGolfError("rans data cut short")
    columns, mean, length = HEADER.unpack_from(data)
    start = HEADER.size + length
    count = (len(data) - start) // 2
    if min(columns, size, MEANS - mean + 1) < 1 or size % columns or size > MAX_ROWS * columns:
        raise ParamGolfError("rans data of another length")
    if count < 2 * columns or (len(data) - start) % 2:
        raise ParamGolfError("rans data cut short")
    contexts, symbols, frequencies, offsets = _tables(data[HEADER.size : start])
    words = np.frombuffer(data, "<u2", offset=start).astype(np.int64)
    state, place = words[:columns] << 16 | words[columns : 2 * columns], 2 * columns
    means, rows = np.full(columns, mean), np.empty((size // columns, columns), np.int8)
    for row in rows:
        slot = contexts[means >> CLASS_SHIFT] + (state & 2**BITS - 1)
        row[:] = symbols[slot]
        state = frequencies[slot] * (state >> BITS) + offsets[slot]
        low = np.flatnonzero(state < LOWEST)
        if place + len(low) > count:
            raise ParamGolfError("rans data cut short")
        state[low] = state[low] << 16 | words[place : place + len(low)]
        place += len(low)
        means = next_means(means, row)
    if place < count or (state != LOWEST).any():
        raise ParamGolfError("damaged rans data, or data of another length")
    return rows.tobytes()


def next_means(means: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Return the running means after a row, int64: they reach about 32 rows back."""
    return means + ((np.abs(row.astype(np.int64)) << 8) - means >> 5)


def context_starts(limits: np.ndarray) -> np.ndarray:
    """Return where the slots of a mean's context begin, by the mean's class."""
    classes = np.arange((MEANS >> CLASS_SHIFT) + 1)
    return np.searchsorted(limits, classes, side="right") << BITS


def _tables(data: bytes) -> tuple[np.ndarray, ...]:
    """Return what a mean's class and a slot stand for."""
    record = np.frombuffer(decompress("brotli", data, TABLES.itemsize), TABLES)[0]
    frequencies = record["frequencies"].astype(np.int64)
    if (frequencies.sum(1) != 2**BITS).any():
        raise ParamGolfError("damaged tables of rans data")
    flat = frequencies.ravel()
    symbols = np.tile(np.arange(-128, 128, dtype=np.int8), CONTEXTS).repeat(flat)
    begins = (flat.cumsum() - flat).repeat(flat)
    return (
        context_starts(record["limits"]),
        symbols,
        flat.repeat(flat),
        np.arange(len(begins)) - begins,
    )

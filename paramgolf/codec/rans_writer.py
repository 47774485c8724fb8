"""The encoder of paramgolf.codec.rans: it takes the rows in reverse."""

from __future__ import annotations

import brotli
import numpy as np

from paramgolf.codec.rans import (
    BITS,
    CLASS_SHIFT,
    CONTEXTS,
    HEADER,
    LOWEST,
    MAX_ROWS,
    TABLES,
    context_starts,
    next_means,
)


def encodable(size: int, columns: int) -> bool:
    """Whether the decoder takes that many integers in rows of `columns`."""
    return size > 0 and columns > 0 and size % columns == 0 and size <= MAX_ROWS * columns


def encode(raw: bytes, columns: int) -> bytes:
    """Return the data of int8 values `raw` in rows of `columns`; they must be `encodable`."""
    rows = np.frombuffer(raw, np.int8).reshape(-1, columns)
    mean = int(np.abs(rows.astype(np.int16)).mean() * 256)
    classes = _classes(rows, mean)
    shares = np.arange(1, CONTEXTS) / CONTEXTS
    limits = np.quantile(classes, shares, method="inverted_cdf").astype(np.uint16)
    contexts = context_starts(limits)[classes] >> BITS
    frequencies = _frequencies(rows, contexts)
    record = np.zeros(1, TABLES)
    record["limits"], record["frequencies"] = limits, frequencies
    tables = brotli.compress(record.tobytes(), quality=11)
    words = _words(rows, contexts, frequencies)
    return HEADER.pack(columns, mean, len(tables)) + tables + words.astype("<u2").tobytes()


def _classes(rows: np.ndarray, mean: int) -> np.ndarray:
    """Return the class of the mean that the decoder will hold before each integer, uint16."""
    classes, means = np.empty(rows.shape, np.uint16), np.full(rows.shape[1], mean)
    for row, row_classes in zip(rows, classes, strict=True):
        row_classes[:] = means >> CLASS_SHIFT
        means = next_means(means, row)
    return classes


def _frequencies(rows: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """Return frequencies that add up to 2^BITS, 1 at least for what occurs: int64 [CONTEXTS, 256].

    A context that never occurs gives all to 0.
    """
    places = contexts * 256 + rows + 128
    counts = np.bincount(places.ravel(), minlength=CONTEXTS * 256).reshape(CONTEXTS, 256)
    counts[counts.sum(1) == 0, 128] = 1
    frequencies = counts * 2**BITS // counts.sum(1, keepdims=True)
    frequencies = np.maximum(frequencies, counts > 0)
    for row in frequencies:
        while row.sum() > 2**BITS:
            row[row.argmax()] -= 1
        row[row.argmax()] += 2**BITS - row.sum()
    return frequencies


def _words(rows: np.ndarray, contexts: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Return the states that decoding begins with, high halves first, then what it reads."""
    starts = frequencies.cumsum(1) - frequencies
    state, chunks = np.full(rows.shape[1], LOWEST, np.int64), []
    for row, context in zip(rows[::-1], contexts[::-1], strict=True):
        symbol = row.astype(np.int64) + 128
        frequency = frequencies[context, symbol]
        high = np.flatnonzero(state >= frequency << 32 - BITS)
        chunks.append(state[high] & 0xFFFF)
        state[high] >>= 16
        state = (state // frequency << BITS) + state % frequency + starts[context, symbol]
    return np.concatenate([state >> 16, state & 0xFFFF, *chunks[::-1]])

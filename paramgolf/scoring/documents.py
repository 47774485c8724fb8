"""The score of each document, as a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paramgolf.bits_per_byte import bits_per_byte
from paramgolf.files import atomic_open
from paramgolf.scoring.text import Text


def document_table(text: Text, nats: np.ndarray) -> pa.Table:
    """Return document, tokens, bytes, nats and bpb, a row a document in the order of the text.

    Predicting a document's BOS counts, with 0 bytes, for the document that it begins; the first BOS
    of all is no target. bpb is null where no byte of a document was scored.
    """
    begins = text.tokens == text.bos
    count = int(begins.sum())
    document = np.cumsum(begins)[1:] - 1
    tokens = np.bincount(document, minlength=count)
    byte_counts = np.bincount(document, weights=text.byte_counts, minlength=count).astype(np.int64)
    sums = np.bincount(document, weights=nats, minlength=count)
    pairs = zip(sums.tolist(), byte_counts.tolist(), strict=True)
    return pa.table(
        {
            "document": pa.array(np.arange(count)),
            "tokens": pa.array(tokens, type=pa.int64()),
            "bytes": pa.array(byte_counts),
            "nats": pa.array(sums),
            "bpb": pa.array([bits_per_byte(*p) if p[1] else None for p in pairs], pa.float64()),
        }
    )


def write_documents(path: str | Path, text: Text, nats: np.ndarray) -> None:
    """Write the table as Parquet, atomically."""
    with atomic_open(path) as file:
        pq.write_table(document_table(text, nats), file, compression="zstd")

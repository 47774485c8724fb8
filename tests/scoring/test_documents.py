"""Scores by document: BOS goes with the document it begins, sums are those of the whole."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from scoring_case import make_text

from paramgolf.bits_per_byte import bits_per_byte
from paramgolf.scoring.documents import document_table, write_documents
from paramgolf.scoring.text import Text


def test_bos_is_counted_with_the_document_it_begins():
    tokens = np.array([1, 7, 8, 1, 9, 1, 1, 5], dtype=np.uint16)
    byte_counts = np.array([3, 4, 0, 5, 0, 0, 6], dtype=np.uint16)
    nats = np.array([1.0, 2.0, 10.0, 3.0, 20.0, 30.0, 4.0])
    table = document_table(Text(tokens, byte_counts, 1), nats).to_pydict()
    assert table["document"] == [0, 1, 2, 3]
    assert table["tokens"] == [2, 2, 1, 2]
    assert table["bytes"] == [7, 5, 0, 6]
    assert table["nats"] == [3.0, 13.0, 20.0, 34.0]
    assert table["bpb"][2] is None
    assert table["bpb"][1] == bits_per_byte(13.0, 5)


def test_documents_add_up_to_the_text(tmp_path):
    text = make_text(500)
    nats = np.random.default_rng(0).random(500)
    write_documents(tmp_path / "documents.parquet", text, nats)
    table = pq.read_table(tmp_path / "documents.parquet").to_pydict()
    assert sum(table["tokens"]) == 500
    assert sum(table["bytes"]) == text.byte_counts.sum()
    assert sum(table["nats"]) == pytest.approx(nats.sum(), rel=1e-12)


def test_the_file_is_the_same_bytes_each_time(tmp_path):
    contents = []
    for name in ("a", "b"):
        write_documents(tmp_path / name, make_text(100), np.ones(100))
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert pq.read_schema(io.BytesIO(contents[0])).names == [
        "document",
        "tokens",
        "bytes",
        "nats",
        "bpb",
    ]

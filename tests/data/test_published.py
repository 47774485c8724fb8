"""Published shards in data/raw become data/tokens: linked, checked, their bytes counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_case
from shard_files import PublishedShards

from paramgolf.data.manifests import SIDECAR_RULE, TokensManifest
from paramgolf.data.retokenize import retokenize
from paramgolf.data.shards import read_shard
from paramgolf.data.tokenizer.byte_counts import byte_table
from paramgolf.errors import ParamGolfError


class Raw(PublishedShards):
    """data/raw of published shards: 3 training shards, and 2 of validation that cut a document."""

    def __init__(self, folder: Path, model: bytes | None = None) -> None:
        model = model or token_case.trained()
        super().__init__(folder, model)
        self.model = token_case.processor(model)
        self.val, train = self.tokens(1, 10), self.tokens(2, 30)
        self.add("val", np.array_split(self.val, 2), documents=10)
        self.add("train", np.array_split(train, 3))
        self.add("val_bytes", [])

        self.case = token_case.Case(folder, folder.with_name("tokens"))

    def tokens(self, seed: int, count: int) -> np.ndarray:
        texts = token_case.make_texts(seed, count)
        ids = [token for text in texts for token in (1, *self.model.encode(text))]
        return np.array(ids, dtype=np.uint16)

    def retokenize(self, **changes: Any) -> TokensManifest:
        config = token_case.config(source="published", **changes)
        return retokenize(config, 1, self.folder, self.case.tokens)

    def refuse(self, expected: str, **changes: Any) -> None:
        with pytest.raises(ParamGolfError, match=expected):
            self.retokenize(**changes)


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    return Raw(tmp_path / "raw")


def test_shards_are_linked_and_their_bytes_counted(raw: Raw) -> None:
    manifest, case = raw.retokenize(), raw.case
    assert case.split("val").tolist() == raw.val.tolist()
    assert (case.tokens / "val_000001.bin").stat().st_nlink == 2
    expected = byte_table(raw.model).counts(raw.val)
    assert case.split("val_bytes").tolist() == expected.tolist()
    assert manifest.val.documents == 10
    assert manifest.train.documents == 30
    texts = token_case.make_texts(1, 10)
    assert case.audit()["bytes_val_counted"] == sum(len(text.encode()) for text in texts)


def test_published_byte_counts_are_taken(raw: Raw) -> None:
    counts = np.minimum(byte_table(raw.model).counts(raw.val), 1)
    raw.add("val_bytes", np.array_split(counts, 2))
    manifest = raw.retokenize()
    assert manifest.val_bytes.rule == SIDECAR_RULE
    assert manifest.val_bytes.bytes == int(counts.sum())
    found = read_shard(raw.case.tokens / "val_bytes_000000.bin")
    assert found.tolist() == np.array_split(counts, 2)[0].tolist()


def test_byte_counts_of_another_length_are_refused(raw: Raw) -> None:
    raw.add("val_bytes", [raw.val[:-1]])
    raw.refuse("byte counts do not fit the validation shards")


def test_a_token_outside_the_vocabulary_is_refused(raw: Raw) -> None:
    raw.add("train", [np.array([1, 320], dtype=np.uint16)])
    raw.refuse(r"does not have(.|\n)*tokens below 320(.|\n)*320")


def test_a_validation_split_below_the_published_number_is_refused(raw: Raw) -> None:
    # a shard of 9.66 M tokens was scored in the place of 40.5 M and nobody saw it (pg#1923)
    raw.add("val", np.array_split(raw.val, 2)[:1], documents=10)
    raw.retokenize()
    raw.case.refuse("val shards do not hold all documents of the source")


def test_spaces_that_the_tokenizer_folds_are_taken_off_a_sidecar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # sidecars count surfaces, that is the raw text; of it and the decoded text the smaller counts
    raw = Raw(tmp_path / "raw", token_case.other(**token_case.PUBLISHED))
    texts = ["the    of", "and the", "in  to\n\n"]
    ids = [token for text in texts for token in (1, *raw.model.encode(text))]
    counts = np.zeros(len(ids), dtype=np.uint16)
    counts[np.flatnonzero(np.array(ids) == 1) + 1] = [len(text) for text in texts]
    raw.add("val", [np.array(ids, dtype=np.uint16)], documents=3)
    raw.add("train", [np.array([1, 50], dtype=np.uint16)])
    raw.add("val_bytes", [counts])
    manifest = raw.retokenize(vocab_size=330)
    decoded = len("the of") + len("and the") + len("in to")
    assert manifest.val_bytes.bytes == decoded
    assert f"exceed the decoded text by {int(counts.sum()) - decoded}" in capsys.readouterr().err
    assert raw.case.audit()["bytes_val_counted"] == decoded


def test_published_shards_with_another_bos_are_refused(raw: Raw) -> None:
    (raw.folder / "tokenizer.model").write_bytes(token_case.other(bos_id=2, eos_id=1))
    raw.refuse(r"another BOS\n  expected: token 1\n  found: token 2", vocab_size=330)

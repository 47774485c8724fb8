"""download: the sample and the user's files become two splits of documents and a manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.data.config import DataConfig
from paramgolf.data.documents import Document, parse, read_documents, write_documents
from paramgolf.data.manifests import read_raw_manifest
from paramgolf.data.source.download import download
from paramgolf.data.source.sample import sample_documents, versions
from paramgolf.errors import ParamGolfError
from paramgolf.files import sha256_file
from paramgolf.recipes import Params


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(sample_documents())


def corpus(folder: Path, count: int, name: str = "corpus.jsonl") -> str:
    lines = [json.dumps({"text": f"text {index} of {name}"}) for index in range(count)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def files_config(sample: Params, *paths: str, **changes: object) -> DataConfig:
    fields = {"source": "files", "files": paths, "validation_documents": 3} | changes
    return dataclasses.replace(sample.data, **fields)


@given(st.lists(st.tuples(st.text(), st.text()), max_size=8))
@settings(max_examples=30, deadline=None)
def test_documents_come_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("documents") / "d.jsonl.zst"
    documents = [Document(name, text) for name, text in pairs]
    entry = write_documents(path, documents)
    assert list(read_documents(path)) == documents
    assert entry.documents == len(documents)
    assert entry.bytes == sum(len(text.encode()) for _, text in pairs)
    assert entry.sha256 == sha256_file(path)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"name": "a"}', '{"name": 1, "text": "b"}', "[" * 9999]
)
def test_a_damaged_line_of_documents_is_one_message(line: str) -> None:
    with pytest.raises(ParamGolfError, match="a line of a file of documents is damaged"):
        parse(line.encode())


def test_the_sample_is_several_megabytes_of_distinct_public_modules(
    documents: list[Document],
) -> None:
    names = [document.name for document in documents]
    assert sum(len(document.text.encode()) for document in documents) > 3_000_000
    assert len(set(names)) == len(names)
    assert len({document.text for document in documents}) == len(documents)
    assert {"json.decoder", "torch.nn.functional", "numpy.linalg"} <= set(names)
    assert "pydoc topic operator-summary" in names
    assert not [name for name in names if "test" in name.split(".")]


def test_the_sample_s_order_is_that_of_hashed_names(documents: list[Document]) -> None:
    names = [document.name for document in documents]
    assert names == sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def test_the_sample_holds_docstrings_under_signatures(documents: list[Document]) -> None:
    (decoder,) = [document for document in documents if document.name == "json.decoder"]
    assert decoder.text.startswith("json.decoder\n\nImplementation of JSONDecoder\n\n")
    assert "\nJSONDecoder.raw_decode(self, s, idx=0)\nDecode a JSON document" in decoder.text


def test_the_sample_makes_the_same_bytes_each_time(
    sample: Params, documents: list[Document], tmp_path: Path
) -> None:
    manifest = download(sample.data, tmp_path / "raw")
    assert manifest == read_raw_manifest(tmp_path / "raw")
    assert manifest.versions == versions()
    assert manifest.val.documents == sample.data.validation_documents
    splits = [
        list(read_documents(tmp_path / f"raw/{split}.jsonl.zst")) for split in ("val", "train")
    ]
    assert splits[0] + splits[1] == documents


def test_the_first_documents_are_validation(sample: Params, tmp_path: Path) -> None:
    config = files_config(sample, corpus(tmp_path, 10), max_documents=4)
    manifest = download(config, tmp_path / "raw")
    val, train = (
        [document.text for document in read_documents(tmp_path / f"raw/{split}.jsonl.zst")]
        for split in ("val", "train")
    )
    assert val == [f"text {index} of corpus.jsonl" for index in range(3)]
    assert train == [f"text {index} of corpus.jsonl" for index in range(3, 7)]
    assert manifest.source == "files"


def test_validation_files_are_a_split_of_their_own(sample: Params, tmp_path: Path) -> None:
    val = corpus(tmp_path, 5, "val.jsonl")
    config = files_config(sample, corpus(tmp_path, 10), validation_files=(val,))
    manifest = download(config, tmp_path / "raw")
    assert (manifest.val.documents, manifest.train.documents) == (5, 10)


def test_what_was_skipped_stands_in_the_manifest(sample: Params, tmp_path: Path) -> None:
    path = corpus(tmp_path, 10)
    with open(path, "ab") as file:
        file.write(b'{"text": ""}\n\xff\n{"text": " "}\n')
    manifest = download(files_config(sample, path, on_error="skip"), tmp_path / "raw")
    assert manifest.skipped == {"empty document": 2, "bad UTF-8": 1}
    assert manifest.train.documents == 7


@pytest.mark.parametrize("count", [2, 3])
def test_too_few_documents_for_two_splits(sample: Params, tmp_path: Path, count: int) -> None:
    config = files_config(sample, corpus(tmp_path, count))
    with pytest.raises(ParamGolfError, match=rf"no training text is left(.|\n)*found: {count}"):
        download(config, tmp_path / "raw")


def test_one_text_for_two_splits_is_said_to_be_one_document(sample: Params, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("one\n\ntwo\n")
    message = r"no training text is left(.|\n)*found: 1\n(.|\n)*a \.txt file is one document"
    with pytest.raises(ParamGolfError, match=message):
        download(files_config(sample, str(book)), tmp_path / "raw")


def test_what_was_skipped_is_said_where_nothing_is_left(
    sample: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    names = str(tmp_path / "latin.txt"), corpus(tmp_path, 10)
    config = files_config(sample, names[1], on_error="skip", validation_files=names[:1])
    with pytest.raises(ParamGolfError, match=r"no validation text is left(.|\n)*give more text$"):
        download(config, tmp_path / "raw")
    assert "skipped: 1 x bad UTF-8\n" in capsys.readouterr().err


def test_nothing_of_an_earlier_run_stays(sample: Params, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "fineweb_train_000000.bin").write_bytes(b"old")
    download(files_config(sample, corpus(tmp_path, 10)), tmp_path / "raw")
    names = {path.name for path in (tmp_path / "raw").iterdir()}
    assert names == {"manifest.json", "train.jsonl.zst", "val.jsonl.zst"}

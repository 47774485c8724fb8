"""retokenize: round trips, the same bytes from any number of workers, faults of tokenizers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import token_case
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import write_shard

from paramgolf import progress
from paramgolf.data.retokenize import retokenize
from paramgolf.data.shards import ShardStream, ShardWriter, split_documents
from paramgolf.data.token_set import open_tokens
from paramgolf.data.tokenizer import encode
from paramgolf.data.tokenizer.encode import batches, ordered_map
from paramgolf.data.tokenizer.training import draw_texts, train_tokenizer
from paramgolf.data.tokenizer.vocabulary_sentencepiece import load_tokenizer
from paramgolf.errors import ParamGolfError
from paramgolf.files import read_json, sha256_file, write_json

VAL, TRAIN = token_case.make_texts(1, 12), token_case.make_texts(2, 80)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return token_case.write_raw(tmp_path_factory.mktemp("raw"), VAL, TRAIN)


@pytest.fixture(scope="module")
def tokens(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "tokens"
    retokenize(token_case.config(), 1, raw, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_decode_to_the_documents(tokens: Path) -> None:
    found, model = open_tokens(tokens), load_tokenizer(tokens / "tokenizer.model")
    for stream, texts in ((found.val(), VAL), (found.train(), TRAIN)):
        documents = [ids for _, ids in split_documents(stream)]
        assert all(ids[0] == 1 for ids in documents)
        assert [model.decode(ids[1:].tolist()) for ids in documents] == texts


def test_progress_is_told_in_documents_and_ends_at_their_number(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    monkeypatch.setattr(encode, "BATCH_BYTES", 2000)
    retokenize(token_case.config(), 1, raw, tmp_path / "tokens")
    told = re.findall(r"^tokens of train: (\d+)/80 in \d+ s$", capfd.readouterr().err, re.M)
    done = [int(number) for number in told]
    assert len(done) > 3
    assert done == sorted(done)
    assert done[-1] == 80


def bytes_of_documents(folder: Path) -> list[int]:
    """What is counted of each validation document; BOS counts nothing."""
    found = open_tokens(folder)
    counts = found.val_bytes()
    spans = [(start, start + len(ids)) for start, ids in split_documents(found.val())]
    assert not any(counts.read(start, start + 1)[0] for start, _ in spans)
    return [int(counts.read(*span).sum()) for span in spans]


def test_every_validation_byte_is_counted(tokens: Path) -> None:
    assert bytes_of_documents(tokens) == [len(text.encode()) for text in VAL]


def test_the_manifest_says_what_lies_there(tokens: Path) -> None:
    manifest = read_json(tokens / "manifest.json")
    assert manifest["vocab_size"] == 320
    assert manifest["bos"] == 1
    assert manifest["val"]["documents"] == len(VAL)
    assert manifest["val_bytes"]["bytes"] == sum(len(text.encode()) for text in VAL)
    assert len(manifest["train"]["files"]) > 2
    files = [file for split in ("train", "val", "val_bytes") for file in manifest[split]["files"]]
    for file in files:
        assert file["sha256"] == sha256_file(tokens / file["name"])
        assert len(ShardStream([tokens / file["name"]])) == file["tokens"]
    listed = {file["name"] for file in files} | {"manifest.json", "tokenizer.model"}
    assert {path.name for path in tokens.iterdir()} == listed
    assert all(file["tokens"] == 1000 for file in manifest["train"]["files"][:-1])


@pytest.mark.parametrize("workers", [2, 3])
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    workers: int, raw: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "BATCH_BYTES", 700)  # many batches, so that order is at stake
    retokenize(token_case.config(), workers, raw, tmp_path / "tokens")
    assert contents(tmp_path / "tokens") == contents(tokens)


def test_the_tokenizer_never_sees_validation_text(raw: Path, tokens: Path, tmp_path: Path) -> None:
    other = token_case.write_raw(tmp_path / "raw", ["something else entirely"] * 3, TRAIN)
    retokenize(token_case.config(), 1, other, tmp_path / "tokens")
    model = "tokenizer.model"
    assert (tmp_path / "tokens" / model).read_bytes() == (tokens / model).read_bytes()


def test_a_lossy_tokenizer_never_counts_more_than_the_raw_bytes(tmp_path: Path) -> None:
    # U+00BD is 2 bytes and becomes 1/2 with U+2044, 5 bytes; runs of spaces shrink
    texts = ["\u00bd of it " * 3, "the   of   and", "plain text"]
    raw = token_case.write_raw(tmp_path / "raw", texts, TRAIN)
    folder = token_case.write_tokens(
        raw, tmp_path / "tokens", token_case.other(**token_case.PUBLISHED)
    )
    expected = [len(texts[0].encode()), len("the of and"), len("plain text")]
    assert bytes_of_documents(folder) == expected


def test_a_given_tokenizer_is_taken_as_it_is(raw: Path, tmp_path: Path) -> None:
    folder = token_case.write_tokens(raw, tmp_path / "tokens", token_case.trained(330))
    assert (folder / "tokenizer.model").read_bytes() == token_case.trained(330)
    assert open_tokens(folder).vocab_size == 330


def test_a_new_tokenizer_under_the_old_path_is_used(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    for size in (330, 320):
        token_case.write_tokens(raw, folder, token_case.trained(size))
    found, model = open_tokens(folder), load_tokenizer(folder / "tokenizer.model")
    _, ids = next(split_documents(found.val()))
    assert ids[1:].tolist() == model.encode(VAL[0])


def test_a_given_tokenizer_is_found_in_the_project_when_run_elsewhere(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "my.model").write_bytes(token_case.trained())
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    config = token_case.config(source="file", path="my.model")
    assert retokenize(config, 1, raw, tmp_path / "tokens").vocab_size == 320


def test_bos_is_token_1_of_the_shards_whatever_the_tokenizer_calls_it(
    raw: Path, tmp_path: Path
) -> None:
    model = token_case.other(bos_id=2, eos_id=1)
    folder = token_case.write_tokens(raw, tmp_path / "tokens", model)
    found, manifest = open_tokens(folder), read_json(folder / "manifest.json")
    assert manifest["tokenizer_bos"] == 2
    documents = [ids for _, ids in split_documents(found.val())]
    own = token_case.processor(model).encode(VAL)
    assert [ids[1:].tolist() for ids in documents] == own
    metrics = token_case.Case(raw, folder).audit()
    assert metrics["lossless"]
    assert metrics["bytes_val_counted"] == sum(len(text.encode()) for text in VAL)


def test_a_given_tokenizer_of_another_size_is_refused(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "m.model").write_bytes(token_case.trained(330))
    config = token_case.config(source="file", path=str(tmp_path / "m.model"))
    with pytest.raises(ParamGolfError, match=r"set tokenizer\.vocab_size to 330"):
        retokenize(config, 1, raw, tmp_path / "tokens")


def test_a_tokenizer_without_bos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.model").write_bytes(token_case.other(bos_id=-1))
    with pytest.raises(ParamGolfError, match="has no BOS token"):
        load_tokenizer(tmp_path / "m.model")


@pytest.mark.parametrize("texts", [[], ["too little text"]])
def test_too_little_text_for_a_vocabulary(texts: list[str]) -> None:
    with pytest.raises(
        ParamGolfError, match=r"cannot train a tokenizer of 4096 pieces(.|\n)*lower"
    ):
        train_tokenizer(texts, 4096)


def test_documents_have_no_published_tokenizer(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ParamGolfError, match="documents come without a published tokenizer"):
        retokenize(token_case.config(source="published"), 1, raw, tmp_path / "tokens")


def test_a_cut_file_of_documents_is_refused(tmp_path: Path) -> None:
    raw = token_case.write_raw(tmp_path / "raw", VAL, TRAIN)
    manifest = read_json(raw / "manifest.json")
    manifest["val"]["documents"] += 1
    write_json(raw / "manifest.json", manifest)
    with pytest.raises(ParamGolfError, match="a file of documents is cut short"):
        retokenize(token_case.config(), 1, raw, tmp_path / "tokens")


def test_the_draw_is_spread_over_the_whole_stream() -> None:
    lines = [json.dumps({"name": "", "text": f"{index:04d}"}).encode() for index in range(1000)]
    total = sum(map(len, lines))
    drawn = list(draw_texts(lines, total_bytes=total, limit_bytes=total // 10))
    assert drawn == [f"{index:04d}" for index in range(0, 1000, 10)]
    everything = draw_texts(lines, total_bytes=total, limit_bytes=2 * total)
    assert len(list(everything)) == 1000


@given(st.lists(st.binary(max_size=30)), st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_batches_hold_every_line_once(lines: list[bytes], size: int) -> None:
    grouped = list(batches(lines, size))
    assert [line for batch in grouped for line in batch] == lines
    assert all(sum(map(len, batch)) >= size for batch in grouped[:-1])


def test_ordered_map_takes_no_more_than_it_needs() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(1000):
            taken += 1
            yield item

    results = ordered_map(abs, items(), 2)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert taken <= 10 + 2 * 2
    results.close()  # type: ignore[attr-defined]


def test_a_dead_worker_is_a_message() -> None:
    with pytest.raises(ParamGolfError, match="a worker process died"):
        list(ordered_map(os._exit, [1, 1, 1], 2))


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(
        "import time\n"
        "from paramgolf.data.tokenizer.encode import ordered_map\n"
        "if __name__ == '__main__':\n"
        "    for _ in ordered_map(time.sleep, [0, 0, 60, 60], 2):\n"
        "        print(flush=True)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        workers = psutil.Process(parent.pid).children(recursive=True)
        assert len(workers) >= 2
        parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


@given(st.lists(st.lists(st.integers(0, 65535), max_size=12)), st.integers(1, 10))
@settings(max_examples=40, deadline=None)
def test_shards_hold_what_was_appended(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]], capacity: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, "val", capacity) as writer:
        for part in parts:
            writer.append(np.array(part, dtype=np.uint16))
    values = [value for part in parts for value in part]
    stream = ShardStream([folder / entry.name for entry in writer.files])
    assert stream.read(0, len(stream)).tolist() == values
    assert sum(entry.tokens for entry in writer.files) == len(values)
    assert all(entry.tokens == capacity for entry in writer.files[:-1])


def test_a_failed_write_leaves_no_shard(tmp_path: Path) -> None:
    def fail() -> None:
        with ShardWriter(tmp_path, "val", 100) as writer:
            writer.append(np.arange(10, dtype=np.uint16))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.lists(st.integers(2, 9), max_size=5), max_size=9), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_documents_are_found_whatever_the_block(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[list[int]], block: int
) -> None:
    values = [token for body in bodies for token in (1, *body)]
    path = tmp_path_factory.mktemp("stream") / "a.bin"
    write_shard(path, np.array(values, dtype=np.uint16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paramgolf.data.shards.BLOCK_TOKENS", block)
        found = list(split_documents(ShardStream([path])))
    assert [ids[1:].tolist() for _, ids in found] == bodies
    assert all(values[start] == 1 for start, _ in found)

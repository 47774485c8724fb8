"""Tokens of a plan: what is made, how often, and which tokenizer it is made with."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from lab_case import plan_of
from shard_files import write_token_set

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.plan import Text, contents
from paramgolf.experiments.lab.run import take_tokens
from paramgolf.experiments.lab.stages import Place, Processes, StageError
from paramgolf.experiments.lab.tokens import Tokens
from paramgolf.params import read_yaml

TEXT = Text(files=("text/train.jsonl",), tokenizers="kept")


class Maker(Processes):
    """Stands in for download and retokenize; `sources` are the tokenizers that were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def run(self, stage: str, place: Place, environment: Mapping[str, str]) -> float:
        if stage == "download":
            (place.folder / "data/raw").mkdir(parents=True)
            return 1.0
        tokenizer = read_yaml(place.folder / "params.yaml")["tokenizer"]
        self.sources.append(f"{tokenizer['source']} {Path(tokenizer['path'] or '').name}".strip())
        values = np.arange(1, 9, dtype=np.uint16)
        folder = place.folder / "data/tokens"
        write_token_set(folder, train=[values], val=[values], val_bytes=[values], vocab_size=300)
        (folder / "tokenizer.model").write_text("a tokenizer")
        return 1.0


@pytest.fixture
def text(tmp_path: Path, tokens: Path) -> Path:
    """A folder of text; `tokens` goes to the project's folder."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text/train.jsonl").write_text("some text")
    return tmp_path / "text"


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def store(tmp_path: Path, text: Path, maker: Maker) -> Tokens:
    """Where the tokens of TEXT are kept, none so far."""
    return Tokens(tmp_path / "made", TEXT, maker, tmp_path)


def content_of(*changes: str) -> dict:
    """Return the parameters of a variant that is trained on TEXT."""
    content = contents(plan_of(), changes)["base"]
    return content | {"data": content["data"] | {"files": [*TEXT.files]}}


def test_tokens_are_made_once_for_each_tokenizer(tmp_path, store, maker):
    variants = {"a": (), "b": ("model.skips=none",), "c": ("tokenizer.transform=caseops",)}
    wanted = [(store, content_of(*changes)) for changes in variants.values()]
    made = dict(zip(variants, take_tokens(wanted, maker), strict=True))
    assert maker.sources == ["train", "train"]
    assert made["a"] == made["b"] != made["c"]
    assert (made["a"].train_tokens, made["a"].folder.name) == (8, "tokens")
    assert not (made["a"].folder.parent / "raw").exists()
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        "sp300.model",
        "sp300_caseops.model",
    }
    again = Tokens(tmp_path / "made", TEXT, maker, tmp_path)
    assert again.find(content_of()) == made["a"]
    assert len(maker.sources) == 2


def test_tokens_of_two_tokenizers_are_made_side_by_side(store, maker, monkeypatch):
    together, run = threading.Barrier(2), Maker.run

    def meet(maker, stage, *rest):
        together.wait(20)
        return run(maker, stage, *rest)

    monkeypatch.setattr(Maker, "run", meet)
    changes = ((), ("tokenizer.transform=caseops",))
    take_tokens([(store, content_of(*one)) for one in changes], maker)
    assert maker.sources == ["train", "train"]


def test_a_tokenizer_that_is_kept_is_taken(tmp_path, store, maker):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/sp300.model").write_text("carried here")
    store.take(content_of())
    assert maker.sources == ["file sp300.model"]
    assert (tmp_path / "kept/sp300.model").read_text() == "carried here"


def test_another_text_under_the_same_name_is_other_tokens(text, store):
    store.take(content_of())
    (text / "train.jsonl").write_text("some more text")
    assert store.find(content_of()) is None


@pytest.mark.parametrize("name", ["text/train.jsonl", "given.model"])
def test_a_file_that_was_edited_is_other_tokens_though_its_size_is_the_same(
    tmp_path, store, maker, name
):
    (tmp_path / "given.model").write_text("a tokenizer")
    content = content_of()
    content |= {"tokenizer": content["tokenizer"] | {"source": "file", "path": "given.model"}}
    assert store.take(content) == store.take(content)
    assert len(maker.sources) == 1
    path = tmp_path / name
    path.write_text(path.read_text()[::-1])
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # a clock may be coarse
    assert store.find(content) is None


@pytest.mark.parametrize("pattern", ["text", "**/[t]rain.jsonl", "text/train.jsonl"])
def test_a_file_may_be_named_by_its_folder_or_a_glob(text, store, pattern):
    content = content_of()
    content |= {"data": content["data"] | {"files": [pattern]}}
    store.take(content)
    (text / "train.jsonl").write_text("some more text")
    assert store.find(content) is None


def test_a_text_that_is_not_there_is_named(text, store, maker):
    (text / "train.jsonl").unlink()
    with pytest.raises(ParamGolfError, match=r"(?s)text is not here.*where: text/train\.jsonl"):
        store.take(content_of())
    assert not maker.sources


def test_given_tokens_must_be_those_that_a_variant_needs(tmp_path, tokens):
    given = Tokens(tmp_path / "made", Text(tokens=str(tokens)), Maker(), tmp_path)
    assert given.take(content_of()).folder == tokens
    manifest = tokens / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"vocab_size": 400}))
    with pytest.raises(ParamGolfError, match="a variant needs other tokens") as caught:
        given.take(content_of())
    assert "expected: tokenizer.vocab_size 300\n  found: 400" in str(caught.value)


def test_tokens_that_cannot_be_made_stop_the_plan(store, maker, monkeypatch):
    def fail(*_):
        raise StageError("download", "there is no file", killed=False)

    monkeypatch.setattr(Maker, "run", fail)
    with pytest.raises(ParamGolfError, match="cannot be made: download: there is no file"):
        take_tokens([(store, content_of())], maker)
    assert maker.stopped.is_set()  # and what is made beside them ends

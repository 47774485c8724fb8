"""A pipe, a device or a folder where a file should be: no reader of the project waits for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paramgolf.codec.container import read_container
from paramgolf.data.documents import read_documents
from paramgolf.data.manifests import read_raw_manifest, read_tokens_manifest
from paramgolf.data.shards import read_shard
from paramgolf.data.source.text_files import find_files
from paramgolf.data.tokenizer.sentencepiece_model import read_model
from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.plan import read_plan
from paramgolf.files import file_size, sha256_file
from paramgolf.packing.script import read_script
from paramgolf.params import read_yaml
from paramgolf.quant.trained import load_tensors, load_trained
from paramgolf.recipes import compose, describe
from paramgolf.report.inputs import read_log
from paramgolf.watch.logs import tail

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "shard": ("train_000000.bin", read_shard),
    "documents": ("train.jsonl.zst", lambda path: list(read_documents(path))),
    "text": ("text.jsonl", lambda path: find_files([str(path)])),
    "texts": ("text.txt", lambda path: find_files([str(path.parent)])),
    "tokens": ("manifest.json", lambda path: read_tokens_manifest(path.parent)),
    "raw": ("manifest.json", lambda path: read_raw_manifest(path.parent)),
    "tokenizer": ("tokenizer.model", read_model),
    "trained": ("config.json", lambda path: load_trained(path.parent)),
    "weights": ("model.safetensors", lambda path: load_tensors(path, fix="dvc repro")),
    "log": ("log.jsonl", read_log),
    "model": ("model.bin", read_container),
    "program": ("train_gpt.py", read_script),
    "parameters": ("params.yaml", read_yaml),
    "plan": ("plan.yaml", read_plan),
    "hash": ("any", sha256_file),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused(tmp_path, name):
    file, read = READERS[name]
    os.mkfifo(tmp_path / file)
    with pytest.raises(ParamGolfError, match="not a regular file") as caught:
        read(tmp_path / file)
    assert str(tmp_path / file) in str(caught.value)


def test_a_pipe_is_no_recipe_and_no_log_that_grows(tmp_path):
    os.mkfifo(tmp_path / "odd.yaml")
    with pytest.raises(ParamGolfError, match="not a regular file"):
        describe("odd", tmp_path)
    with pytest.raises(ParamGolfError, match="there is no recipe `odd`"):
        compose("odd", tmp_path)
    assert tail(tmp_path / "odd.yaml") == []


def test_all_that_is_no_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for path in (Path(), Path("socket"), Path("/dev/zero")):
            with pytest.raises(ParamGolfError, match="not a regular file"):
                file_size(path)
    with pytest.raises(ParamGolfError, match=r"(?s)there is no file none.*what to do: make it"):
        file_size("none", fix="make it")

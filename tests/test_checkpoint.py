"""Checkpoints: what is loaded is what was saved, or nothing, and that is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paramgolf.checkpoint import Checkpoint

CPU = torch.device("cpu")
STATE = {"step": 7, "weights": {"q": torch.arange(6.0)}, "log": ["a", "b"], "none": None}


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> Checkpoint:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return Checkpoint("train", "key")


def test_the_newest_state_is_loaded(checkpoint):
    assert checkpoint.load(CPU) is None
    checkpoint.save({"step": 1})
    checkpoint.save(STATE)
    found = checkpoint.load(CPU)
    assert torch.equal(found.pop("weights")["q"], STATE["weights"]["q"])
    assert found == {key: value for key, value in STATE.items() if key != "weights"}
    checkpoint.remove()
    assert checkpoint.load(CPU) is None


def test_every_single_byte_counts(checkpoint, capsys):
    checkpoint.save(STATE)
    content = checkpoint.path.read_bytes()
    for at in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        checkpoint.path.write_bytes(damaged)
        assert checkpoint.load(CPU) is None, at
        assert "is damaged: the run begins afresh" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [0, 1, 31, 32, 33, 500, -1])
def test_a_file_that_was_cut_is_damaged(checkpoint, capsys, kept):
    checkpoint.save(STATE)
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:kept])
    assert checkpoint.load(CPU) is None
    assert str(checkpoint.path) in capsys.readouterr().err


def test_a_file_with_more_behind_it_is_damaged_and_one_process_says_so(checkpoint, capsys):
    checkpoint.save(STATE)
    checkpoint.path.write_bytes(checkpoint.path.read_bytes() + b"more")
    assert checkpoint.load(CPU, tell=False) is None
    assert capsys.readouterr().err == ""


def test_a_file_of_another_kind_is_damaged(checkpoint):
    checkpoint.folder.mkdir(parents=True)
    torch.save(STATE, checkpoint.path)
    assert checkpoint.load(CPU) is None


def test_the_key_is_of_code_that_is_imported_later_too():
    script = """
import sys
import paramgolf.scoring.stage
from paramgolf.checkpoint import resume_key, sources
late = (
    "paramgolf.data.tokenizer.token_mask",
    "paramgolf.model.kernels.heads",
    "paramgolf.scoring.lora_documents",
    "paramgolf.scoring.lower_layers",
)
before = {*sys.modules}
assert not {*late, "paramgolf.model.kernels"} & before
assert {*late} < {*sources()}
assert {*sys.modules} == before
key = resume_key()
import paramgolf.model.kernels
import paramgolf.scoring.lora_documents
assert resume_key() == key
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)

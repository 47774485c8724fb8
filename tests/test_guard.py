"""The guard before training on several GPUs, and the evaluations' speeds that it judges by."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from recipe_case import recipe
from shard_files import write_token_set

from paramgolf.commands.check import gpus_of_run
from paramgolf.estimate.devices import DEVICES
from paramgolf.estimate.evaluation import scored_per_second
from paramgolf.estimate.guard import objections
from paramgolf.estimate.speed import Machine
from paramgolf.files import read_json
from paramgolf.recipes import Params, compose

ROOT = Path(__file__).parents[1]
H100 = "NVIDIA H100 80GB HBM3"
MEASURED = {
    row["figure"]: row["value"]
    for row in read_json(ROOT / "benchmarks/results/scoring.json")["rows"]
    if row.get("device", H100) == H100  # older rows, which do not tell, are all of one
}


def tokens(train: int = 8_000_000_000, val: int = 40_000_000) -> SimpleNamespace:
    """The published tokens' counts, as far as the guard reads a manifest."""
    count = SimpleNamespace
    return SimpleNamespace(train=count(tokens=train), val=count(tokens=val), vocab_size=8192)


def found(params: Params, gpus: list[str], **counts: int) -> list[str]:
    return list(objections(params, tokens(**counts), gpus))


def test_the_recipes_of_the_contest_pass_on_its_machine():
    for name in ("best", "pr1493", "pr1855"):
        assert found(recipe(name), [H100] * 8) == []


@pytest.mark.parametrize(
    ("section", "changes", "gpus", "message"),
    [
        ("quantize", {"matrix_bits": 8, "fit_bytes": None}, 8, "the artifact takes"),
        ("train", {"micro_batch_tokens": 786_432}, 2, "a GPU's memory"),
        ("eval_sliding", {"stride": 1}, 8, "eval_sliding takes"),
        ("eval_ttt", {"epochs": 300}, 8, "eval_ttt takes"),
    ],
)
def test_each_limit_that_will_be_broken_is_named(section, changes, gpus, message):
    params = recipe("pr1493")
    part = dataclasses.replace(getattr(params, section), **changes)
    (objection,) = found(dataclasses.replace(params, **{section: part}), [H100] * gpus)
    assert objection.startswith(message)


def test_tokens_that_are_read_more_than_once_are_named_and_an_unknown_gpu_not_judged():
    params = recipe("pr1493")
    (objection,) = found(params, [H100] * 8, train=1_000_000_000)
    assert objection.endswith("data/tokens holds 1,000,000,000: each is read 4.8 times")
    assert found(params, ["NVIDIA L4"] * 8, train=1_000_000_000) == []


@pytest.mark.parametrize(
    ("name", "mode", "row"),
    [
        ("pr1493", "eval_ttt", "sgd: tokens scored a second"),
        (
            "pr1855",
            "eval_ttt",
            "lora_documents, documents of the contest's lengths: tokens scored a second",
        ),
    ],
)
def test_evaluations_are_as_fast_as_measured_on_one_h100(name, mode, row):
    params = recipe(name)
    machine = Machine(device=DEVICES["H100"], count=1)
    config = getattr(params, mode)
    rate = scored_per_second(params.model, params.tokenizer.vocab_size, config, machine)
    assert rate == pytest.approx(MEASURED[row], rel=0.25)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with few tokens, on a machine whose driver tells of two H100."""
    tool = tmp_path / "bin/nvidia-smi"
    tool.parent.mkdir()
    line = f"{H100}, 0, 81559, 80.0, 0"
    tool.write_text(f"#!/bin/sh\necho '0, {line}'\necho '1, {line}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("paramgolf.commands.check.check_hash", lambda stage: None)
    monkeypatch.chdir(tmp_path)
    few = [np.arange(100)]
    folder = tmp_path / "data/tokens"
    write_token_set(folder, train=few, val=few, val_bytes=few, vocab_size=8192)
    return tmp_path


def write_params(folder: Path, **verify: bool) -> None:
    content = compose("pr1493", ROOT / "recipes")
    content["verify"] |= verify
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def test_training_on_two_gpus_is_refused_unless_a_key_or_one_gpu_says_otherwise(
    project, monkeypatch, command
):
    write_params(project)
    message = command("check", "--stage", "train", code=2)
    assert f"2 x {H100}" in message
    assert "data/tokens holds 100: each is read" in message
    assert "verify.guard_training" in message
    write_params(project, guard_training=False)
    command("check", "--stage", "train")
    write_params(project)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    command("check", "--stage", "train")


def test_the_gpus_of_a_run_are_those_that_its_processes_take(project, monkeypatch):
    runtime = recipe("sample").runtime
    assert len(gpus_of_run(runtime)) == 2
    assert len(gpus_of_run(dataclasses.replace(runtime, processes=1))) == 1
    assert gpus_of_run(dataclasses.replace(runtime, device="cpu")) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_of_run(runtime) == []

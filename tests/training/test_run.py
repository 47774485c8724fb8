"""Training as a stage: kill -9 at any moment, run again: the bytes of an uninterrupted run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from process_case import ALONE
from recipe_case import TINY_MODEL
from shard_files import write_shard

from paramgolf import progress
from paramgolf.checkpoint import Checkpoint
from paramgolf.clock import Clock
from paramgolf.data.shards import ShardStream
from paramgolf.errors import ParamGolfError
from paramgolf.recipes import compose
from paramgolf.training import run
from paramgolf.training.result import METRICS, OUT
from paramgolf.training.run import train
from paramgolf.training.schedule import Point
from paramgolf.training.state import TrainState

ROOT = Path(__file__).parents[2]
TINY_TRAIN = {
    "steps": 80,
    "batch_tokens": 256,
    "micro_batch_tokens": 128,
    "sequence_length": 32,
    "validate_every": 50,
    "validation_tokens": 500,
    "checkpoint_every": 10,
}
ROWS_BY_PHASE = {"untied_repeats": True, "virtual_scalars": True}  # that learn from recurrence on
WILD = {"token_lr": 1e30, "clip_norm": 0.0, "validate_every": 0, "checkpoint_every": 1}

GPU_SIZES = {"width": 256, "heads": 4, "kv_heads": 2, "mlp_hidden": 512}


def write_params(
    folder: Path,
    *,
    processes: int = 1,
    deterministic: bool = False,
    device: str = "cpu",
    **train: object,
) -> None:
    content = compose("sample", ROOT / "recipes")
    content["model"] |= TINY_MODEL | ROWS_BY_PHASE
    content["model"] |= GPU_SIZES if device == "cuda" else {}
    content["train"] |= {**TINY_TRAIN, **train}
    machine = {"processes": processes, "device": device, "deterministic": deterministic}
    content["runtime"] |= machine
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def start(folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("DVC_ROOT", None)
    return subprocess.Popen(
        [sys.executable, ROOT / "stages/train.py"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path) -> str:
    process = start(folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def kill_after_checkpoint(folder: Path) -> None:
    """Start the stage and kill it, and all it started, a moment after its first checkpoint."""
    process = start(folder)
    deadline = time.monotonic() + 120
    while not list(folder.glob(".resume/*/state.pt")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "artifacts/train/model.safetensors").exists()


def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path, tokens_folder):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        shutil.copytree(tokens_folder, folder / "data/tokens")
        write_params(folder, processes=2, deterministic=True)
    finish(whole)
    kill_after_checkpoint(cut)
    shutil.rmtree(cut / "artifacts", ignore_errors=True)  # as DVC does before it runs a stage again
    errors = finish(cut)
    assert "resumed at step" in errors
    weights = [f / "artifacts/train/model.safetensors" for f in (whole, cut)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    logs = [f / "artifacts/train/log.jsonl" for f in (whole, cut)]
    lines = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
    losses = [[x["loss"] for x in log if x["event"] == "step"] for log in lines]
    assert len(losses[0]) == 80
    assert losses[0] == losses[1]
    assert not list(cut.glob(".resume/*"))


@pytest.mark.gpu
def test_deterministic_runs_on_a_gpu_end_with_the_same_bytes(tmp_path, tokens_folder):
    """Two runs, each with what it compiles for itself, and one that is killed and resumed."""
    folders = [tmp_path / name for name in ("first", "second", "cut")]
    # rows of many blocks of keys, whose gradients meet in those of the queries
    sizes = {"sequence_length": 1024, "batch_tokens": 16_384, "micro_batch_tokens": 8192}
    for folder in folders:
        shutil.copytree(tokens_folder, folder / "data/tokens")
        write_params(
            folder, device="cuda", deterministic=True, steps=200, checkpoint_every=50, **sizes
        )
    kill_after_checkpoint(folders[-1])
    for folder in folders:
        finish(folder)
    first, *others = ((f / "artifacts/train/model.safetensors").read_bytes() for f in folders)
    assert others == [first, first]


@pytest.fixture
def trained(tmp_path, tokens_folder, tiny_model, sample, monkeypatch):
    """Train inside a temporary project; return the log's records."""
    monkeypatch.chdir(tmp_path)

    def run(**changes: object) -> list[dict[str, Any]]:
        config = dataclasses.replace(sample.train, **{**TINY_TRAIN, **changes})
        train(tiny_model(**ROWS_BY_PHASE), config, ALONE)
        return [json.loads(line) for line in (OUT / "log.jsonl").read_text().splitlines()]

    return run


def losses_of(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records if record["event"] == "step"]


def test_a_validation_on_a_part_is_told_from_the_last_one(trained, capsys):
    records = trained(validate_every=4, validation_tokens=64, steps=4)
    validations = [record for record in records if record["event"] == "validation"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "val_bpb" in line]
    ends = [f"of {record['tokens_scored']:,} tokens" for record in validations]
    assert [line.endswith(end) for line, end in zip(lines, ends, strict=True)] == [True] * 3
    assert ends[1] == "of 64 tokens" != ends[2]


def test_progress_shows_a_loss_once_it_is_known(trained, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    losses = losses_of(trained(steps=3, validate_every=0))
    lines = [line for line in capsys.readouterr().err.splitlines() if "% step" in line]
    assert lines == [
        "train: 0% step 1",
        f"train: 33% step 2 loss {losses[0]:.4f}",
        f"train: 67% step 3 loss {losses[1]:.4f}",
    ]


def test_a_loss_is_read_when_the_next_step_has_been_queued(trained, monkeypatch):
    """What waits for a step while the device has nothing else to do costs it a twentieth."""
    said = []
    start_copy, update = run.start_copy, TrainState.step

    def copy(loss: torch.Tensor) -> Callable[[], np.ndarray]:
        number, wait = 1 + sum("copy" in one for one in said), start_copy(loss)
        said.append(f"copy {number}")
        return lambda: (said.append(f"read {number}"), wait())[1]

    def step(state: TrainState, at: Point, **options: float) -> float:
        said.append("update")
        return update(state, at, **options)

    monkeypatch.setattr(run, "start_copy", copy)
    monkeypatch.setattr(TrainState, "step", step)
    trained(steps=3, validate_every=0, checkpoint_every=0)
    first, second, third = (["copy 1", "update"], ["copy 2", "update", "read 1"], ["copy 3"])
    assert said == [*first, *second, *third, "update", "read 2", "read 3"]


@pytest.mark.parametrize(("precision", "cut"), [("bf16", 10), ("bf16", 20), ("fp8_mlp", 20)])
def test_one_process_resumes_to_the_bytes_of_an_uninterrupted_run(
    trained, monkeypatch, capsys, precision, cut
):
    """It is cut off before recurrence begins, at step 15, and after that."""
    sizes = {"steps": 30, "validate_every": 12, "checkpoint_every": cut, "precision": precision}
    whole, save = trained(**sizes), Checkpoint.save
    weights = (OUT / "model.safetensors").read_bytes()

    def save_and_end(checkpoint, state):
        save(checkpoint, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", save_and_end)
        with pytest.raises(KeyboardInterrupt):
            trained(**sizes)
    resumed = trained(**sizes)
    assert losses_of(resumed) == losses_of(whole)
    assert f"resumed at step {cut}" in capsys.readouterr().err
    assert (OUT / "model.safetensors").read_bytes() == weights
    seconds = [record["seconds"] for record in resumed if record["event"] == "step"]
    assert seconds == sorted(seconds)  # those before the cut count
    assert json.loads(METRICS.read_text())["train_seconds"] >= seconds[-1]


def test_changed_parameters_and_other_tokens_start_afresh(trained, tokens_folder, capsys):
    """A run that ends in a loss that is not finite leaves its checkpoint."""
    manifest = tokens_folder / "manifest.json"  # which has the hash of each shard
    for change, resumed in (("", False), ("", True), ("\n", False)):
        manifest.write_text(manifest.read_text() + change)
        with pytest.raises(ParamGolfError, match="the loss is not finite"):
            trained(steps=6, **WILD)
        assert ("resumed at step" in capsys.readouterr().err) == resumed
    assert trained(steps=5, **WILD | {"token_lr": 0.01})[0]["event"] == "start"
    assert "resumed" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("steps", "where"), [(80, "where: step 3"), (2, "where: validation after step 2")]
)
def test_divergence_names_its_place_and_keeps_the_checkpoint(trained, tmp_path, steps, where):
    """At the end too, where no step comes that would tell of it."""
    with pytest.raises(ParamGolfError, match="the loss is not finite") as caught:
        trained(steps=steps, **WILD)
    (kept,) = tmp_path.glob(".resume/*/state.pt")
    assert where in str(caught.value)
    assert f"last good checkpoint: {kept.relative_to(tmp_path)}" in str(caught.value)
    assert not (tmp_path / OUT / "model.safetensors").exists()


def test_the_seconds_of_a_step_are_those_at_its_end(trained, monkeypatch):
    """By a clock that moves on by one in each step, and in each validation."""
    now = [0.0]

    def moving(function):
        def moved(*arguments, **options):
            now[0] += 1
            return function(*arguments, **options)

        return moved

    monkeypatch.setattr(run, "Clock", functools.partial(Clock, now=lambda: now[0]))
    monkeypatch.setattr(TrainState, "step", moving(TrainState.step))
    monkeypatch.setattr(run, "validate", moving(run.validate))
    records = [r for r in trained(steps=6, validate_every=3) if r["event"] == "step"]
    assert [r["seconds"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r["tokens"] for r in records] == [256 * r["seconds"] for r in records]


def test_time_budget_ends_training(trained):
    records = trained(steps=None, budget_seconds=1.5, reserve_seconds=0.5, validate_every=0)
    metrics = json.loads(METRICS.read_text())
    assert metrics["train_seconds"] >= 1.0
    assert metrics["steps"] == len(losses_of(records)) > 0


def test_neither_validation_nor_checkpoints_count_as_training_time(trained, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run, "Clock", functools.partial(Clock, now=lambda: now[0]))

    def taking(seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*given: Any, **options: Any) -> Any:
            now[0] += seconds
            return work(*given, **options)

        return slow

    monkeypatch.setattr(run, "validate", taking(100.0, run.validate))
    monkeypatch.setattr(Checkpoint, "save", taking(100.0, Checkpoint.save))
    monkeypatch.setattr(TrainState, "step", taking(1.0, TrainState.step))
    trained(steps=4, validate_every=2, checkpoint_every=2)
    assert json.loads(METRICS.read_text())["train_seconds"] == 4.0


def test_validation_text_changes_nothing_that_is_learned(trained, tokens_folder):
    scores, learned = [], []
    for _ in range(2):
        losses = losses_of(trained(steps=4, validate_every=2, checkpoint_every=0))
        learned.append((losses, (OUT / "model.safetensors").read_bytes()))
        scores.append(json.loads(METRICS.read_text())["val_bpb"])
        val = ShardStream([tokens_folder / "val_000000.bin"])
        write_shard(tokens_folder / "val_000000.bin", val.read(0, len(val))[::-1])
    assert scores[0] != scores[1]
    assert learned[0] == learned[1]


def test_the_log_is_a_new_file_where_a_link_to_the_cache_lay(trained, tmp_path):
    """After `dvc checkout` the outputs are links into DVC's cache, which nothing may change."""
    cached = tmp_path / "cached"
    cached.write_text("kept")
    (tmp_path / OUT).mkdir(parents=True)
    os.link(cached, tmp_path / OUT / "log.jsonl")
    assert losses_of(trained(steps=2))
    assert cached.read_text() == "kept"

"""Training as a stage: kill -9 at any moment, run again: the bytes of an uninterrupted run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from paramgolf import progress
from paramgolf.data.token_set import open_tokens
from paramgolf.errors import ParamGolfError
from paramgolf.model.network import Network, Pass
from paramgolf.recipes import compose
from paramgolf.runtime import Runtime
from paramgolf.training.config import BatchPhase
from paramgolf.training.run import Run, without_unreached_phases
from paramgolf.training.validate import validate

ROOT = Path(__file__).parents[2]
CPU = Runtime(0, 1, torch.device("cpu"))
TINY_MODEL = {
    "layers": 4,
    "width": 32,
    "heads": 4,
    "kv_heads": 2,
    "mlp_hidden": 64,
    "rope_dims": 4,
    "parallel_start": 3,
    "recurrence": [{"at": 0.5, "order": [0, 1, 2, 1, 2, 3]}],
}
TINY_TRAIN = {
    "steps": 120,
    "batch_tokens": 256,
    "micro_batch_tokens": 128,
    "sequence_length": 32,
    "validate_every": 50,
    "validation_tokens": 500,
    "checkpoint_every": 20,
}


def write_params(folder: Path, *, processes: int = 1, **train: object) -> None:
    content = compose("sample", ROOT / "recipes")
    content["model"] |= TINY_MODEL
    content["train"] |= {**TINY_TRAIN, **train}
    content["runtime"] |= {"processes": processes, "device": "cpu"}
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


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(
    tmp_path, tokens_folder, processes
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        shutil.copytree(tokens_folder, folder / "data/tokens")
        write_params(folder, processes=processes)
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
    assert len(losses[0]) == 120
    assert losses[0] == losses[1]
    assert not list(cut.glob(".resume/*"))


def test_changed_parameters_start_afresh(tmp_path, tokens_folder):
    write_params(tmp_path)
    kill_after_checkpoint(tmp_path)
    write_params(tmp_path, steps=10)
    assert "resumed" not in finish(tmp_path)
    metrics = json.loads((tmp_path / "artifacts/metrics/train.json").read_text())
    assert metrics["steps"] == 10


def test_divergence_names_the_step_and_keeps_the_checkpoint(tmp_path, tokens_folder):
    write_params(tmp_path, token_lr=1e30, clip_norm=0.0, checkpoint_every=1)
    process = start(tmp_path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "the loss is not finite" in errors
    assert "where: step" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.glob(".resume/*/state.pt"))


@pytest.fixture
def run(tmp_path, tokens_folder, tiny_model, sample, monkeypatch):
    """Make runs inside a temporary project."""
    monkeypatch.chdir(tmp_path)

    def make(runtime: Runtime = CPU, **changes: object) -> Run:
        config = dataclasses.replace(sample.train, **{**TINY_TRAIN, **changes})
        return Run(tiny_model(), config, runtime, open_tokens(tokens_folder))

    return make


def test_loss_falls_and_the_first_is_a_uniform_guess(run):
    one = run(steps=60)
    one.resume()
    one.warm_up()
    one.loop()
    records = [json.loads(line) for line in one._log.lines]
    losses = [record["loss"] for record in records if record["event"] == "step"]
    assert abs(losses[0] - math.log(64)) < 0.05
    assert losses[-1] < losses[0] - 1


def test_progress_shows_a_loss_once_it_is_known(run, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    one = run(steps=3, validate_every=0)
    one.resume()
    one.loop()
    lines = [line for line in capsys.readouterr().err.splitlines() if "% step" in line]
    records = [json.loads(line) for line in one._log.lines]
    losses = [record["loss"] for record in records if record["event"] == "step"]
    assert lines == [
        "train: 0% step 1",
        f"train: 33% step 2 loss {losses[0]:.4f}",
        f"train: 67% step 3 loss {losses[1]:.4f}",
    ]


def test_micro_batches_do_not_change_the_gradient(run):
    one, two = run(micro_batch_tokens=32), run(micro_batch_tokens=256)
    losses = [float(r._forward_backward()) for r in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for p, q in zip(one._network.parameters(), two._network.parameters(), strict=True):
        if p.grad.abs().max() > 0:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-4)


def test_warm_up_leaves_weights_moments_and_batches_untouched(run, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # not the point here
    compiled = Runtime(0, 1, torch.device("cpu"), compile=True)
    warm, cold = run(runtime=compiled), run()
    before = [batch.tokens for batch in warm._batches.read(warm._sizes, 0)]
    warm.warm_up()
    for p, q in zip(warm._network.parameters(), cold._network.parameters(), strict=True):
        assert torch.equal(p, q)
        assert not p.grad.any()
    assert all(not buffer.any() for buffer in warm._state._muon.momentum.values())
    assert not warm._state._adam.state
    after = [batch.tokens for batch in warm._batches.read(warm._sizes, 0)]
    assert torch.equal(torch.cat(after), torch.cat(before))
    assert warm.clock.elapsed < 1.0


def test_only_what_meets_in_a_run_is_compiled(run):
    """Recurrence begins at a half: sizes that begin later, or end before, meet one order alone."""

    def met(*later: float, unit: str = "fraction") -> list[tuple[int, int]]:
        phases = [BatchPhase(at=at, batch_tokens=512, sequence_length=64) for at in later]
        one = run(curriculum=tuple(phases))
        one.model = dataclasses.replace(one.model, recurrence_unit=unit)
        return sorted((one.config.sizes.index(s), phase) for s, phase in one.phase_pairs())

    assert met() == [(0, 0), (0, 1)]
    assert met(0.5) == [(0, 0), (1, 1)]
    assert met(0.2, 0.6) == [(0, 0), (1, 0), (1, 1), (2, 1)]
    assert met(0.5, unit="step") == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_time_budget_ends_training(run):
    one = run(steps=None, budget_seconds=1.5, reserve_seconds=0.5, validate_every=0)
    one.resume()
    one.warm_up()
    one.loop()
    assert one.step > 0
    assert one.clock.elapsed >= 1.0


def test_validation_scores_each_token_once_from_its_own_window(run, tokens_folder, tiny_model):
    network = Network(tiny_model(), 64, seed=1)
    tokens = open_tokens(tokens_folder)
    order = Pass(network.config.orders[-1])
    scores = [
        validate(
            network, tokens.val(), tokens.val_bytes(), order, CPU,
            length=32, batch_windows=batch, max_tokens=None,
        )
        for batch in (1, 7)
    ]  # fmt: skip
    values = torch.from_numpy(tokens.val().read(0, 3000).astype("int64"))
    nats = 0.0
    with torch.no_grad():
        for first in range(0, 2999, 32):
            row = values[first : first + 33]
            nats += float(network.nll(row[None, :-1], row[None, 1:], order).double().sum())
    expected_bytes = int(tokens.val_bytes().read(1, 3000).sum())
    for score in scores:
        assert score.tokens == 2999
        assert score.byte_count == expected_bytes
        assert score.nats == pytest.approx(nats, rel=1e-6)


def test_recurrence_that_never_began_leaves_the_model(tiny_model):
    config = tiny_model(untied_repeats=True)
    network = Network(config, 64, seed=1)
    kept, tensors = without_unreached_phases(config, 0, network.state_dict())
    smaller = Network(kept, 64)
    smaller.load_state_dict(tensors)
    assert kept.orders == ((0, 1, 2, 3),)


def test_too_little_text_is_one_message(tmp_path, tiny_model, sample, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamGolfError, match=r"there is no file .*manifest\.json"):
        open_tokens(tmp_path)

"""An evaluation that is killed and started again ends with the bits of one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from packed_case import write_package

from paramgolf.runtime import Ranks
from paramgolf.scoring.resume import Resume

ROOT = Path(__file__).parents[2]
# argv: a case, and seconds to wait after each item, so that there is time to kill it
SCRIPT = """
import sys, time
from pathlib import Path
from resume_case import CASES
from paramgolf.runtime import processes
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.scoring import resume, sliding
from paramgolf.scoring.stage import StageSession

resume.SECONDS, resume.SHARE, sliding.ITEM_BATCHES = 0.0, 1e9, 2
config, score = CASES[sys.argv[1]]
runtime = RuntimeConfig(device="cpu", processes=1, attention="auto", compile="off", workers=0)
paths = Path("model.bin"), Path(".")


class Slow(StageSession):
    def after(self, scorer, done, total):
        super().after(scorer, done, total)
        time.sleep(float(sys.argv[2]))


with processes(runtime) as ranks:
    session = Slow("eval", config, ranks, *paths)
    session.finish(score(*paths, config, ranks, session))
"""
CASES = ("strided", "documents", "windowed", "sgd", "lora_stream", "lora_documents", "phases")


def start(folder: Path, case: str, *, seconds: float = 0.0, world: int = 1, port: int = 0):
    """Start an evaluation in `folder`, one process a rank."""
    path = f"{ROOT}:{Path(__file__).parent}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment.pop("DVC_ROOT", None)
    group = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", SCRIPT, case, str(seconds)]
    return [
        subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, **(group | {"RANK": str(rank)} if world > 1 else {})},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def finish(folder: Path, case: str, **options) -> tuple[str, np.ndarray, dict]:
    """Run an evaluation to its end; return what it said, its scores and its metrics."""
    running = start(folder, case, **options)
    said = [process.communicate(timeout=120)[1] for process in running]
    assert not any(process.returncode for process in running), said
    table = pq.read_table(folder / "artifacts/eval/documents.parquet")
    metrics = json.loads((folder / "artifacts/metrics/eval.json").read_text())
    assert not list(folder.glob(".resume/*"))
    return said[0], np.array(table["nats"]), metrics


def kill_once_saved(folder: Path, case: str, **options) -> None:
    running = start(folder, case, seconds=0.2, **options)
    deadline = time.monotonic() + 60
    while not list(folder.glob(".resume/*/state.pt")):
        assert running[0].poll() is None, running[0].stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.3)  # on to a later save
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (folder / "artifacts").exists()


@pytest.fixture
def folder(tmp_path):
    write_package(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_the_score_is_that_of_an_uninterrupted_evaluation(folder, case):
    said, whole, expected = finish(folder, case)
    assert "resumed" not in said
    (folder / "artifacts").rename(folder / "before")
    kill_once_saved(folder, case)
    said, nats, metrics = finish(folder, case)
    assert "resumed after" in said
    assert (nats == whole).all()
    for key in ("val_bpb", "val_loss", "val_bpb_plain", "tokens_scored", "bytes_scored", "ledger"):
        assert metrics[key] == expected[key], key
    # the seconds of the process that was killed count
    assert metrics["seconds"] > metrics["seconds_start"] + metrics["seconds_score"]


def test_two_processes_resume_with_what_each_had_learned(folder, free_port):
    _, whole, expected = finish(folder, "phases", world=2, port=free_port)
    (folder / "artifacts").rename(folder / "before")
    kill_once_saved(folder, "phases", world=2, port=free_port)
    said, nats, metrics = finish(folder, "phases", world=2, port=free_port)
    assert "resumed after" in said
    assert (nats == whole).all()
    assert metrics["ledger"] == expected["ledger"]


def test_another_evaluation_starts_afresh(folder):
    kill_once_saved(folder, "sgd")
    content = bytearray((folder / "bytes.bin").read_bytes())
    content[-2] += 1  # one target stands for one byte more
    (folder / "bytes.bin").write_bytes(content)
    running = start(folder, "sgd")
    assert "resumed" not in running[0].communicate(timeout=120)[1]


def test_saves_are_rare_and_cheap(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    resume = Resume("eval", "key", Ranks(0, 1, torch.device("cpu")))
    saved = []

    def make():
        saved.append(now[0])
        now[0] += 3.0  # seconds that a save takes
        return {"done": len(saved)}, {}

    while now[0] < 600:
        now[0] += 1.0
        resume.save(make)
    assert saved == [30.0, 183.0, 336.0, 489.0]  # 3 s of 150 s are 2 %
    again = Resume("eval", "key", Ranks(0, 1, torch.device("cpu")))
    assert again.state["done"] == 4
    again.remove()
    assert not list(tmp_path.glob(".resume/*"))

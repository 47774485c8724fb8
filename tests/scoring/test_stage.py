"""An evaluation as a stage: killed and started again it gives the same bits; its table adds up."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from packed_case import write_package, write_tokens
from process_case import server
from resume_case import CASES, evaluate
from scoring_case import ALONE, make_text

from paramgolf.bits_per_byte import bits_per_byte
from paramgolf.errors import ParamGolfError
from paramgolf.process import GROUP_VARIABLE
from paramgolf.runtime import Runtime
from paramgolf.scoring import alone
from paramgolf.scoring.alone import sooner_alone
from paramgolf.scoring.probe import Probe
from paramgolf.scoring.stage import SavedEvaluation, StageSession, document_table, write_documents
from paramgolf.scoring.text import Text


def run(folder: Path, case: str, *, cut: int | None = None, world: int = 1) -> list[int]:
    """Run an evaluation in `folder`, one process a rank; return their exit codes."""
    group = {"WORLD_SIZE": str(world), GROUP_VARIABLE: tempfile.mkdtemp(dir=folder)}
    running = []
    for rank in range(world):
        environment = group | {"RANK": str(rank), "LOCAL_RANK": "0"} if world > 1 else {}
        arguments = (case, str(folder), cut, environment)
        running.append(server().Process(target=evaluate, args=arguments, daemon=True))
        running[-1].start()
    for process in running:
        process.join(timeout=120)
    return [process.exitcode for process in running]


def finish(folder: Path, case: str, *, world: int = 1) -> tuple[str, np.ndarray, dict]:
    """Run an evaluation to its end; return what it said, its scores and its metrics."""
    assert run(folder, case, world=world) == [0] * world
    table = pq.read_table(folder / "artifacts/eval/documents.parquet")
    metrics = json.loads((folder / "artifacts/metrics/eval.json").read_text())
    return (folder / "said").read_text(), np.array(table["nats"]), metrics


def kill(folder: Path, case: str, *, cut: int = 2, world: int = 1) -> None:
    """Kill an evaluation once `cut` of its items are done."""
    assert run(folder, case, cut=cut, world=world) == [-signal.SIGKILL] * world
    assert list(folder.glob(".resume/*/state.pt"))
    assert not (folder / "artifacts").exists()


@pytest.fixture
def folder(tmp_path):
    write_package(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("mode", "reads"), [("strided", 8 * 4), ("documents", 8 * 5), ("windowed", 8)]
)
@pytest.mark.parametrize("processes", [0, 4])
def test_a_short_text_takes_one_process_unless_asked_for_more(
    mode, reads, processes, sample, tmp_path, monkeypatch
):
    write_tokens(tmp_path)
    sizes = {"window": 8, "stride": 2, "max_tokens": 8}
    config = dataclasses.replace(sample.eval_sliding, mode=mode, **sizes)
    machine = dataclasses.replace(sample.runtime, processes=processes)
    for short in (reads, reads + 1):
        monkeypatch.setattr(alone, "SHORT", short)
        assert sooner_alone(config, machine, tmp_path) is (reads < short and processes == 0)


def test_all_of_a_text_is_meant_where_no_number_of_tokens_is_set(sample, tmp_path, monkeypatch):
    write_tokens(tmp_path)
    monkeypatch.setattr(alone, "SHORT", 9)
    config = dataclasses.replace(sample.eval_sliding, mode="windowed", max_tokens=None)
    assert not sooner_alone(config, sample.runtime, tmp_path)


def test_missing_tokens_are_named_before_any_process_starts(sample, tmp_path):
    with pytest.raises(ParamGolfError, match=r"(?s)no file .*manifest\.json.*dvc repro retokenize"):
        sooner_alone(sample.eval_sliding, sample.runtime, tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_the_score_is_that_of_an_uninterrupted_evaluation(folder, case):
    # of phases one is done then, and batches that hand their A on to those that follow
    cut = 7 if case == "phases" else 2
    said, whole, expected = finish(folder, case)
    assert "resumed" not in said
    (folder / "artifacts").rename(folder / "before")
    kill(folder, case, cut=cut)
    said, nats, metrics = finish(folder, case)
    assert f"resumed after {cut} parts" in said
    assert not list(folder.glob(".resume/*"))
    assert (nats == whole).all()
    for key in ("val_bpb", "val_loss", "val_bpb_plain", "tokens_scored", "bytes_scored", "ledger"):
        assert metrics[key] == expected[key], key
    # those before the cut count, and each process looks at its first
    assert metrics["probe"]["passes"] >= expected["probe"]["passes"]
    # the seconds of the process that was killed count
    assert metrics["seconds"] > metrics["seconds_start"] + metrics["seconds_score"]


def test_two_processes_resume_with_what_each_had_learned(folder):
    _, whole, expected = finish(folder, "phases", world=2)
    (folder / "artifacts").rename(folder / "before")
    kill(folder, "phases", world=2)
    said, nats, metrics = finish(folder, "phases", world=2)
    assert "resumed after" in said
    assert (nats == whole).all()
    assert metrics["ledger"] == expected["ledger"]


def test_parts_take_as_long_as_the_slowest_process(sample, folder, monkeypatch):
    """The main process may wait for another that compiles for longer: that is no lost time."""
    session = StageSession("eval_sliding", sample.eval_sliding, ALONE, tokens=folder)
    session.seconds.update(compile=1.0, score=5.0)
    other = {"seconds_compile": 20.0, "seconds_score": 4.0, "seconds_adapt": 2.0}
    monkeypatch.setattr(Runtime, "gather", lambda _, value: [value, other])
    monkeypatch.setattr(Probe, "over", lambda *_: {})
    found = session.metrics
    assert [found[part] for part in other] == [20.0, 5.0, 2.0]


def test_another_evaluation_starts_afresh(folder):
    kill(folder, "sgd")
    content = bytearray((folder / "val_bytes_000000.bin").read_bytes())
    content[-2] += 1  # one target stands for one byte more
    (folder / "val_bytes_000000.bin").write_bytes(content)
    said, _, _ = finish(folder, "sgd")
    assert "resumed" not in said


@pytest.mark.parametrize(("case", "file"), [("strided", "eval-*"), ("phases", "eval-*-0-?")])
def test_a_damaged_file_is_said_and_the_evaluation_begins_afresh(folder, case, file):
    _, whole, _ = finish(folder, case)
    (folder / "artifacts").rename(folder / "before")
    kill(folder, case)
    damaged = list(folder.glob(f".resume/{file}/state.pt"))
    assert damaged
    for path in damaged:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4  # one bit of a score or a weight
        path.write_bytes(content)
    said, nats, _ = finish(folder, case)
    assert "is damaged: the run begins afresh" in said
    assert "resumed" not in said
    assert (nats == whole).all()


def test_saves_are_rare_and_cheap(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    saved_evaluation = SavedEvaluation("eval", "key", ALONE)
    saved = []

    def make():
        saved.append(now[0])
        now[0] += 3.0  # seconds that a save takes
        return {"done": len(saved)}, {}

    while now[0] < 600:
        now[0] += 1.0
        saved_evaluation.save(make)
    assert saved == [30.0, 183.0, 336.0, 489.0]  # 3 s of 150 s are 2 %
    again = SavedEvaluation("eval", "key", ALONE)
    assert again.state["done"] == 4
    again.remove()
    assert not list(tmp_path.glob(".resume/*"))


def test_bos_is_counted_with_the_document_it_begins():
    tokens = np.array([1, 7, 8, 1, 9, 1, 1, 5], dtype=np.uint16)
    byte_counts = np.array([3, 4, 0, 5, 0, 0, 6], dtype=np.uint16)
    nats = np.array([1.0, 2.0, 10.0, 3.0, 20.0, 30.0, 4.0])
    table = document_table(Text(tokens, byte_counts, 1), nats).to_pydict()
    assert table["document"] == [0, 1, 2, 3]
    assert table["tokens"] == [2, 2, 1, 2]
    assert table["bytes"] == [7, 5, 0, 6]
    assert table["nats"] == [3.0, 13.0, 20.0, 34.0]
    assert table["bpb"][2] is None
    assert table["bpb"][1] == bits_per_byte(13.0, 5)


def test_the_file_is_the_same_bytes_each_time(tmp_path):
    contents = []
    for name in ("a", "b"):
        write_documents(tmp_path / name, make_text(100), np.ones(100))
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    names = pq.read_schema(io.BytesIO(contents[0])).names
    assert names == ["document", "tokens", "bytes", "nats", "bpb"]

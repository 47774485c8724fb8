"""GPU slots: two runs never hold one GPU, waiting is in turn, a killed run gives its GPUs back."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from recipe_case import recipe

from paramgolf import gpu_slots
from paramgolf.clock import start_time
from paramgolf.errors import ParamGolfError
from paramgolf.runtime_config import RuntimeConfig

ROOT = Path(__file__).parents[1]

HOLDER = """
import sys
from pathlib import Path
from paramgolf import gpu_slots
gpu_slots.POLL_SECONDS = 0.05
print(*gpu_slots.take(sys.argv[2].split(","), int(sys.argv[3]), Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


class Run:
    """A process that takes GPUs and holds them until it is told to end."""

    def __init__(self, folder: Path, devices: str, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), devices, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def taken(self) -> list[str]:
        """Wait for its GPUs and return them."""
        return self.process.stdout.readline().split()

    def says(self) -> str:
        """Wait for its next line of progress."""
        return self.process.stderr.readline()

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def call(count: int, devices: str = "0,1,2") -> Run:
        runs.append(Run(tmp_path / "slots", devices, count))
        return runs[-1]

    yield call
    for run in runs:
        run.process.kill()
        run.process.communicate()


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the variable that take_gpus leaves for the process; its locks lie in tmp_path."""
    for name in (gpu_slots.VISIBLE, "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(gpu_slots, "POLL_SECONDS", 0.01)


def runtime(device: str = "auto", processes: int = 1) -> RuntimeConfig:
    return dataclasses.replace(recipe("base").runtime, device=device, processes=processes)


def machine_has(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    """Let the driver tell of so many GPUs (None: nothing), and torch be one that could use them."""
    monkeypatch.setattr(gpu_slots, "gpu_count", lambda: count)
    monkeypatch.setattr(gpu_slots, "torch_has_cuda", lambda: True)


def test_runs_side_by_side_take_different_gpus(start):
    one, two = start(1), start(2)
    assert sorted(one.taken() + two.taken()) == ["0", "1", "2"]


@pytest.mark.parametrize("how", ["its end", "SIGKILL"])
def test_a_run_waits_and_gets_what_another_gives_back(start, how):
    first = start(2)
    assert first.taken() == ["0", "1"]
    second = start(3)
    assert second.says() == "gpu: waiting for 3 of 3 GPUs; 1 free\n"
    first.end() if how == "its end" else first.process.send_signal(signal.SIGKILL)
    assert second.taken() == ["0", "1", "2"]
    assert second.says() == "gpu: took 0, 1, 2\n"


def test_a_run_that_needs_many_is_not_overtaken(start):
    first = start(1)
    assert first.taken() == ["0"]
    many = start(3)
    assert "waiting" in many.says()
    late = start(1)
    assert late.says() == "gpu: waiting for 1 of 3 GPUs, behind another run that waits\n"
    first.end()
    assert many.taken() == ["0", "1", "2"]
    many.end()
    assert late.taken() == ["0"]


def test_only_visible_gpus_are_taken(start):
    low, high = start(2, "0,1"), start(1, "2,3")
    assert (low.taken(), high.taken()) == (["0", "1"], ["2"])
    both = start(1, "1,3")
    assert both.taken() == ["3"]


def test_more_gpus_than_there_are(tmp_path):
    with pytest.raises(ParamGolfError, match=r"wants 3 GPUs.*2 can be seen(.|\n)*at most 2"):
        gpu_slots.take(["0", "1"], 3, tmp_path)


@pytest.mark.parametrize(
    ("visible", "processes", "seen"),
    [(None, 1, "0"), (None, 0, "0,1,2,3"), ("2,3", 1, "2"), ("GPU-a/1, GPU-b", 0, "GPU-a/1,GPU-b")],
)
def test_the_stage_sees_what_it_took(tmp_path, monkeypatch, visible, processes, seen):
    monkeypatch.setattr(gpu_slots, "slot_folder", lambda: tmp_path)
    machine_has(monkeypatch, 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # where names are no indices
    if visible is not None:
        monkeypatch.setenv(gpu_slots.VISIBLE, visible)
    gpu_slots.take_gpus(runtime(processes=processes))
    assert os.environ[gpu_slots.VISIBLE] == seen


@pytest.mark.parametrize(
    ("visible", "seen"),
    [("", []), ("3, 0", ["3", "0"]), ("1,4,2", ["1"]), ("4", []), ("1,1", ["1"]), ("0,-1", ["0"])],
)
def test_gpus_that_are_hidden_or_not_there_are_not_seen(monkeypatch, visible, seen):
    """By the driver where it can tell, else by torch, of which this would be the answer."""
    machine_has(monkeypatch, 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv(gpu_slots.VISIBLE, visible)
    assert gpu_slots.visible_gpus() == seen


def test_without_a_driver_that_tells_torch_is_asked(monkeypatch):
    machine_has(monkeypatch, None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpu_slots.visible_gpus() == ["0", "1"]


def test_whether_torch_can_use_a_gpu_is_told_without_it():
    assert gpu_slots.torch_has_cuda() == (torch.version.cuda is not None)


@pytest.mark.gpu
def test_the_driver_counts_as_torch_does():
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    assert len(gpu_slots.visible_gpus()) == int(subprocess.check_output(command))


@pytest.mark.parametrize("case", ["no gpu", "cpu", "torchrun"])
def test_nothing_is_taken_without_need(tmp_path, monkeypatch, case):
    monkeypatch.setattr(gpu_slots, "slot_folder", lambda: tmp_path / "slots")
    machine_has(monkeypatch, 0 if case == "no gpu" else 2)
    if case == "torchrun":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    gpu_slots.take_gpus(runtime(device="cpu" if case == "cpu" else "auto"))
    assert gpu_slots.VISIBLE not in os.environ
    assert not (tmp_path / "slots").exists()


def test_waiting_counts_against_no_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_slots, "slot_folder", lambda: tmp_path)
    machine_has(monkeypatch, 1)

    def slow(*_: object) -> list[str]:
        time.sleep(0.2)
        return ["0"]

    monkeypatch.setattr(gpu_slots, "take", slow)
    before = start_time()
    gpu_slots.take_gpus(runtime())
    assert start_time() >= before + 0.2


SEES = """
import dataclasses, sys
import torch
from paramgolf.gpu_slots import take_gpus
from paramgolf.params import load_params
from paramgolf.runtime_config import RuntimeConfig
config = load_params(RuntimeConfig, "runtime", sys.argv[1])
take_gpus(dataclasses.replace(config, processes=1))
torch.ones(1, device="cuda").sum().item()
print(torch.cuda.device_count(), torch.cuda.get_device_properties(0).uuid, flush=True)
sys.stdin.read()
"""


@pytest.mark.gpu
def test_runs_on_real_gpus_see_one_each():
    """One run a GPU of this machine: each computes on its own."""
    command = [sys.executable, "-c", SEES, str(ROOT / "recipes/base.yaml")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, **pipes) for _ in range(torch.cuda.device_count())]
    seen = [run.stdout.readline().split() for run in runs]
    for run in runs:
        run.communicate()
    assert {count for count, _ in seen} == {"1"}
    assert len({uuid for _, uuid in seen}) == len(runs)

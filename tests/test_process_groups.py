"""Processes of a group: how they find each other, how they end, and what is told of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from process_case import runs, wait_for, written

from paramgolf.launch import end_groups
from paramgolf.params import read_yaml

ROOT = Path(__file__).parents[1]
# each process of a group runs the words after its name, once both have started
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from paramgolf.program import exit_on_fault, start_program
start_program()
from paramgolf.errors import ParamGolfError
from paramgolf.launch import launch

def say(text):  # at once, for all share the stream
    os.write(1, f"{text}\\n".encode())

def join():
    from process_case import CPU
    from paramgolf.runtime import processes
    return processes(CPU)

with exit_on_fault():
    launch(2)
    rank = int(os.environ["RANK"])
    Path(f"rank{rank}").write_text(str(os.getpid()))
    while not (Path("rank0").exists() and Path("rank1").exists()):
        time.sleep(0.01)
    exec(sys.argv[1])
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a group of two in a folder of its own; whatever is left of it is killed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "PARAMGOLF_GROUP"):
        monkeypatch.delenv(name, raising=False)
    Path("script.py").write_text(SCRIPT)
    started: list[subprocess.Popen[str]] = []

    def call(work: str, folder: str = ".") -> subprocess.Popen[str]:
        Path(folder).mkdir(exist_ok=True)
        command = [sys.executable, tmp_path / "script.py", work]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=folder, **pipes))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.communicate()


def pids() -> list[int]:
    """Return the two processes of the group, once they have started."""
    paths = [Path("rank0"), Path("rank1")]
    wait_for(lambda: all(written(path) for path in paths))
    return [int(path.read_text()) for path in paths]


def nobody_left() -> bool:
    return not any(map(runs, pids())) and not list(Path().glob("paramgolf-*"))


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return the exit code and what was said, when all have ended."""
    out, err = process.communicate()
    assert nobody_left()
    return process.returncode, out, err


def test_processes_know_their_place_and_find_each_other(start):
    work = "with join() as runtime: say([*runtime.gather(rank), os.environ['OMP_NUM_THREADS']])"
    assert end(start(work)) == (0, "[0, 1, '1']\n" * 2, "")


def test_two_groups_at_a_time_keep_apart(start):
    names = "one", "two"
    work = "with join() as runtime: say(runtime.gather(Path.cwd().name))"
    said = [group.communicate() for group in [start(work, name) for name in names]]
    assert said == [(f"{[name] * 2}\n" * 2, "") for name in names]


@pytest.mark.parametrize("code", [1, 3])
def test_nothing_is_added_to_what_a_failed_process_said(code, start):
    work = f"if rank: say('odd'); sys.exit({code})\nsignal.pause()"
    assert end(start(work)) == (code, "odd\n", "")


def test_a_process_that_ends_well_is_not_waited_for_in_vain(start):
    assert end(start("if rank: sys.exit()\ntime.sleep(0.2); say('done')")) == (0, "done\n", "")


@pytest.mark.parametrize("who", [0, 1])
def test_a_killed_process_ends_the_others_and_is_named(who, start):
    process = start("signal.pause()")
    os.kill(pids()[who], signal.SIGKILL)
    assert end(process) == (137, "", f"paramgolf: process {who} was ended by SIGKILL\n")


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "paramgolf: interrupted\n")],
)
def test_a_launcher_that_is_to_end_ends_all_first(number, code, said, start):
    process = start("signal.pause()")
    pids()
    process.send_signal(number)
    assert end(process) == (code, "", said)


def test_a_killed_launcher_leaves_no_process(start):
    process = start("signal.pause()")
    found = pids()
    process.kill()
    wait_for(lambda: not any(map(runs, found)))


@pytest.mark.timeout(30)
def test_what_ends_when_asked_is_not_killed_and_what_does_not_is_with_its_group(tmp_path):
    deaf = "trap '' TERM; sleep 100 & echo $! > child; wait"
    words = (
        ["sh", "-c", "trap 'exit 3' TERM; touch ready; while :; do sleep 0.01; done"],
        ["sh", "-c", deaf],
    )
    leaders = [subprocess.Popen(command, cwd=tmp_path, start_new_session=True) for command in words]
    wait_for(lambda: written(tmp_path / "child") and (tmp_path / "ready").exists())
    end_groups(leaders, 1.0)
    assert [leader.returncode for leader in leaders] == [3, -signal.SIGKILL]
    wait_for(lambda: not runs(int((tmp_path / "child").read_text())))


def test_what_ends_just_after_its_time_is_no_error(monkeypatch):
    process, wait = subprocess.Popen(["sleep", "60"], start_new_session=True), subprocess.Popen.wait

    def wait_too_long(process, timeout=None):
        wait(process)
        if timeout is not None:
            raise subprocess.TimeoutExpired("sleep", timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_too_long)
    end_groups([process], 1.0)
    assert process.returncode == -signal.SIGTERM


def test_what_fails_all_processes_is_told_once(start):
    work = "raise ParamGolfError('no tokens', where='here', fix='make some')"
    said = "paramgolf: no tokens\n  where: here\n  what to do: make some\n"
    assert end(start(work)) == (2, "", said)


def test_the_others_say_nothing_of_a_process_that_fails_while_they_wait_for_it(start):
    work = (
        "with join() as runtime:\n  if rank: raise ParamGolfError('no tokens')\n  runtime.barrier()"
    )
    assert end(start(work)) == (2, "", "paramgolf: no tokens\n")


def test_a_module_is_started_as_one_in_each_process(start):
    """As a file it would have its folder before the library."""
    Path("room").mkdir()
    Path("room/measure.py").write_text(SCRIPT)
    work = "say(f'{__spec__.name} {sys.path[0] == os.getcwd()}')"
    command = [sys.executable, "-m", "room.measure", work]
    assert subprocess.check_output(command, text=True) == "room.measure True\n" * 2


# stands for a stage's script, up to where it starts its processes
BEFORE = """
import runpy, sys
from paramgolf import stage_runtime
from paramgolf.scoring import alone
def launch(count):
    print(count, "torch" in sys.modules)
    raise SystemExit
stage_runtime.launch, alone.sooner_alone = launch, lambda *_: False
runpy.run_path(sys.argv.pop(), run_name="__main__")
"""


@pytest.mark.parametrize("stage", ["train", "calibrate", "quantize", "eval_sliding", "eval_ttt"])
def test_a_stage_starts_its_processes_without_torch(stage, start):
    content = read_yaml(ROOT / "params.yaml")
    content["runtime"] |= {"device": "cpu", "processes": 2}
    content["quantize"] |= {"fit_bytes": 15_000_000}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    Path("artifacts/metrics").mkdir(parents=True)
    Path(f"artifacts/metrics/{stage}.json").write_text("{}")
    command = [sys.executable, "-c", BEFORE, str(ROOT / f"stages/{stage}.py")]
    assert subprocess.check_output(command, text=True) == "2 False\n"

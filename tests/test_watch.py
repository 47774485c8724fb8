"""`paramgolf watch`: from logs and tables made up, and over an ssh that runs it here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from paramgolf.cli import main
from paramgolf.commands.watch import clock, lines, shown
from paramgolf.recipes import compose
from paramgolf.training_log import LOG
from paramgolf.watch import logs
from paramgolf.watch.state import state
from paramgolf.watch.system import Stage, stage_under_way

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, the working directory, on a machine without GPU."""
    params = compose("sample", ROOT / "recipes")
    params["train"] |= {"steps": None, "budget_seconds": 600.0, "reserve_seconds": 100.0}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("paramgolf.watch.state.gpus", list)
    return tmp_path


def write_log(folder: Path, steps: int, *, every: float = 0.5) -> Path:
    """A log of `steps` steps, each of 1,000 tokens, `every` seconds apart."""
    records = [{"event": "start"}, {"event": "validation", "step": 0, "val_bpb": 5.0}]
    for i in range(1, steps + 1):
        records.append(
            {"event": "step", "step": i, "tokens": 1000 * i, "seconds": every * i, "loss": 9 - i}
        )
    path = folder / LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def under_way(monkeypatch: pytest.MonkeyPatch, name: str, seconds: float = 20.0) -> None:
    stage = Stage(name, 1, seconds)
    monkeypatch.setattr("paramgolf.watch.state.stage_under_way", lambda root: stage)


def test_training_shows_speed_what_is_left_and_its_budgets(project, monkeypatch):
    write_log(project, 200)
    under_way(monkeypatch, "train")
    found = state(project, project / "none")
    assert found["training"]["tokens_per_second"] == pytest.approx(2000)
    assert found["left_seconds"] == pytest.approx(400)  # 600 - 100 in reserve - 200 x 0.5
    left = {budget["name"]: budget["left_seconds"] for budget in found["budgets"]}
    assert left == {"train.budget_seconds": 400.0, "verify.train_seconds": 500.0}
    shown = dict(lines(found))
    assert shown["training"] == "step 200, loss -191.0000, 2,000 tokens/s, 1:40 on its clock"
    assert shown["left"] == "6:40 of this stage"


def test_only_the_end_of_a_long_log_is_read(project):
    path = write_log(project, 5000)
    assert path.stat().st_size > 4 * logs.TAIL_BYTES
    with path.open("a") as file:
        file.write('{"event": "step", "st')  # being written
    assert len("".join(logs.tail(path))) < logs.TAIL_BYTES
    assert logs.training(path).step == 5000
    assert logs.training(path).validation is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 3}', "`event` is missing"),
        ('{"event": "step", "step": 3, "tokens": 1, "seconds": 1}', "`loss` is missing"),
        ('{"event": "validation", "step": 3, "val_bpb": "low"}', "`val_bpb` a number in each"),
    ],
)
def test_a_line_that_no_training_writes_is_one_message(line, message, project, command):
    with write_log(project, 2).open("a") as file:
        file.write(f"{line}\n")
    error = command("watch", "--once", code=2)
    assert message in error
    assert "log.jsonl" in error


def test_before_the_first_step_nothing_is_made_up(project, monkeypatch):
    write_log(project, 0)
    under_way(monkeypatch, "train")
    found = state(project, project / "none")
    assert found["left_seconds"] is None
    assert dict(lines(found))["training"] == "no step yet: it starts or compiles"
    assert dict(lines(found))["validation"].startswith("5.0000 ")


def test_a_silent_training_is_a_warning(project, monkeypatch):
    path = write_log(project, 3)
    under_way(monkeypatch, "train")
    assert not state(project, project / "none")["warnings"]
    os.utime(path, (0, time.time() - 90))
    (warning,) = state(project, project / "none")["warnings"]
    assert "nothing for 9" in warning


@pytest.mark.parametrize(
    ("stage", "name", "left"),
    [
        ("calibrate", "verify.train_seconds", 600 - 480 - 20),
        ("eval_ttt", "verify.eval_seconds", 580),
        ("package", None, None),
    ],
)
def test_other_stages_have_budgets_of_their_own(stage, name, left, project, monkeypatch):
    metrics = project / "artifacts/metrics/train.json"
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"train_seconds": 480.0}')
    under_way(monkeypatch, stage)
    found = {b["name"]: b["left_seconds"] for b in state(project, project / "none")["budgets"]}
    assert found == ({name: left} if name else {})


def test_the_output_tells_progress_and_warnings(project, monkeypatch):
    printed = project / "repro.log"
    printed.write_text("warning: one\nquantize: fine\nx.cpp: Error: two\neval: 10/40 in 30 s\npart")
    under_way(monkeypatch, "eval_ttt")
    found = state(project, printed)
    assert found["output"] == "eval: 10/40 in 30 s"
    assert found["left_seconds"] == 90
    assert found["warnings"] == ["warning: one", "x.cpp: Error: two"]


def test_the_stage_under_way_is_that_of_this_folder(tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/eval_ttt.py").write_text("import sys; print(); sys.stdin.read()")
    command = [sys.executable, "stages/eval_ttt.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        found = stage_under_way(tmp_path)
        elsewhere = stage_under_way(tmp_path.parent)
        child.stdin.close()
    assert (found.name, found.process) == ("eval_ttt", child.pid)
    assert 0 <= found.seconds < 600
    assert elsewhere is None
    assert stage_under_way(tmp_path) is None


def test_a_program_that_reads_a_stage_is_no_stage(tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/train.py").touch()
    with subprocess.Popen(["tail", "-f", "stages/train.py"], cwd=tmp_path) as reader:
        found = stage_under_way(tmp_path)
        reader.kill()
    assert found is None


def test_once_and_over_ssh(project, monkeypatch, capfd):
    """A stand-in for ssh runs what it is given, with this project's command as the one there."""
    write_log(project, 4)
    tools = project / ".venv/bin"
    tools.mkdir(parents=True)
    (tools / "ssh").write_text('#!/bin/sh\necho "host $1"\nshift\nexec sh -c "$*"\n')
    (tools / "paramgolf").write_text(f'#!/bin/sh\nexec {sys.executable} -m paramgolf.cli "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(SystemExit) as caught:
        main(["watch", "--once", "--host", "me@there", "--folder", str(project)])
    assert caught.value.code == 0
    shown = capfd.readouterr().out
    assert shown.startswith("host me@there\n")
    assert "none under way" in shown
    assert "step 4, loss 5.0000, 2,000 tokens/s" in shown


def test_without_a_terminal_it_shows_once_and_ends(project, command):
    write_log(project, 4)
    assert "step 4, loss 5.0000" in command("watch")


def test_json_and_bad_input(project, command):
    assert json.loads(command("watch", "--json"))["stage"] is None
    wrong = {"nan": "must be a number above 0", "1e300": "must be at most 86,400 s, not 1e300"}
    for seconds, message in wrong.items():
        error = command("watch", "--every", seconds, code=2)
        assert f"argument --every: {message}" in error


@pytest.mark.parametrize("once", ["--once", "--json"])
def test_a_named_output_must_be_there_where_nothing_waits_for_it(once, project, command):
    assert "there is no file none/x" in command("watch", "--output", "none/x", once, code=2)
    assert "none under way" in command("watch", "--once")  # without the default file


def test_a_named_output_is_waited_for(project):
    named = project / "run.log"
    assert ("output", f"{named} is not there yet") in [*shown(named)]
    assert "output" not in dict(shown(None))
    named.write_text("a line\n")
    assert dict(shown(named))["output"] == "a line"


def test_an_overdrawn_budget_has_a_sign():
    assert [clock(seconds) for seconds in (0, 65, 600, -65)] == ["0:00", "1:05", "10:00", "-1:05"]

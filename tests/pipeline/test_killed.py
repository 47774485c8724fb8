"""A dvc that is killed leaves no stage running; any other program outlives its shell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipeline_case import ROOT
from process_case import runs, wait_for, written
from repository_case import Repository

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(120)]

STAGE = """
import os, pathlib, time
from paramgolf.program import start_program
start_program()
pathlib.Path("pid").write_text(str(os.getpid()))
time.sleep(100)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Repository:
    """A folder with a script that stands for a long stage."""
    (tmp_path / "stage.py").write_text(STAGE)
    folder = Repository(tmp_path)
    folder.environment["PYTHONPATH"] = str(ROOT)
    return folder


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_killed_dvc_ends_its_stage(stage, shell):
    stage.environment["SHELL"] = shell
    stage.run("dvc", "init", "--no-scm", "-q")
    commands = "[exec python --version, exec python stage.py]"
    plan = f"stages: {{long: {{cmd: {commands}, always_changed: true}}}}"
    (stage.folder / "dvc.yaml").write_text(plan)
    dvc = subprocess.Popen(["dvc", "repro", "-q"], cwd=stage.folder, env=stage.environment)
    pid = stage.folder / "pid"
    wait_for(lambda: written(pid))
    dvc.kill()
    dvc.wait()
    wait_for(lambda: not runs(int(pid.read_text())))  # or the test's time runs out


def test_a_program_outlives_the_shell_that_began_it(stage):
    shell = ["/bin/sh", "-c", f"{sys.executable} stage.py & exec sleep 100"]
    started = subprocess.Popen(shell, cwd=stage.folder, env=stage.environment)
    pid = stage.folder / "pid"
    wait_for(lambda: written(pid))
    started.kill()
    started.wait()
    time.sleep(0.2)
    number = int(pid.read_text())
    assert runs(number)
    os.kill(number, signal.SIGKILL)

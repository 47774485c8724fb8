"""train_gpt.py on several processes: torchrun starts them, and says nothing of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# the processes run it, as that one does which starts them
SCRIPT = """
import dataclasses, os, sys
from paramgolf.packing.entry import launch
from process_case import CPU
launch(dataclasses.replace(CPU, processes=2))
if os.environ["RANK"] == "1":
    print("odd", file=sys.stderr)
    ENDS
"""


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        ("sys.exit(3)", 3, []),
        ("os.kill(os.getpid(), 9)", 137, ["paramgolf: process 1 was ended by SIGKILL"]),
    ],
)
def test_torchrun_adds_nothing_to_what_a_failed_process_said(ends, code, said, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.replace("ENDS", ends))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.splitlines() == ["odd", *said]

"""Importing the package changes nothing; what torch and numpy read is set where processes start."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paramgolf.process import ENVIRONMENT

ROOT = Path(__file__).parents[1]
STAGES = sorted((ROOT / "stages").glob("*.py"))
IMPORT_ALL = """
import importlib, json, os, pathlib, sys
import matplotlib, numpy, pyarrow, safetensors, scipy, torch  # what they set is theirs
before = dict(os.environ)
for path in sorted(pathlib.Path("paramgolf").rglob("*.py")):
    if sys.argv[1] == "True" or "kernels" not in path.parts:
        importlib.import_module(".".join(path.with_suffix("").parts))
print(json.dumps([before, dict(os.environ)]))
"""


def without_settings(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    return {**kept, "PYTHONPATH": str(ROOT), **settings}


def output_of(*arguments: str, **settings: str) -> str:
    environment = without_settings(**settings)
    command = [sys.executable, *arguments]
    return subprocess.check_output(command, cwd=ROOT, env=environment, text=True)


def test_importing_every_module_leaves_the_environment_as_it_is():
    triton = importlib.util.find_spec("triton") is not None
    before, after = json.loads(output_of("-c", IMPORT_ALL, str(triton)))
    assert before == after


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_a_stage_starts_its_process_before_its_other_imports(path):
    first, second, third = ast.parse(path.read_text()).body[:3]
    assert isinstance(first, ast.Expr)  # the docstring
    assert ast.unparse(second) == "from paramgolf.program import exit_on_fault, start_stage"
    assert ast.unparse(third) == "start_stage()"


@pytest.mark.parametrize("word", ["--help", "train.steps=5"])
def test_a_stage_refuses_a_word_that_it_would_not_read(word, tmp_path):
    command = [sys.executable, str(ROOT / "stages/report.py"), word]
    settings = without_settings()
    ended = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert ended.returncode == 2
    assert f"a stage takes no arguments\n  found: {word}\n  what to do:" in ended.stderr


@pytest.mark.parametrize(
    "start",
    [
        "import runpy; runpy.run_path('stages/report.py')",
        "import contextlib, paramgolf.cli\n"
        "with contextlib.suppress(SystemExit): paramgolf.cli.main(['check', '--stage', 'train'])",
    ],
    ids=["stage", "command"],
)
def test_a_started_process_has_the_settings_and_keeps_those_of_its_user(start):
    show = f"{start}\nimport json, os; print(json.dumps(dict(os.environ)))"
    found = json.loads(output_of("-c", show).splitlines()[-1])
    assert {name: found[name] for name in ENVIRONMENT} == ENVIRONMENT
    found = json.loads(output_of("-c", show, OPENBLAS_NUM_THREADS="3").splitlines()[-1])
    assert found["OPENBLAS_NUM_THREADS"] == "3"


def test_a_process_that_works_for_another_says_nothing_once_nobody_reads():
    program = "from paramgolf.apart import serve_parent; serve_parent(); input(); print('done')"
    words = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **words) as process:
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == -signal.SIGPIPE

"""Commands that answer, fail, are missing, or take too long."""

from __future__ import annotations

import sys

import pytest

from paramgolf.shell import output_of


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ([sys.executable, "-c", "print('here')"], "here\n"),
        ([sys.executable, "-c", "raise SystemExit(3)"], None),
        (["no-such-command-at-all"], None),
    ],
)
def test_an_answer_is_what_was_printed(command, answer):
    assert output_of(command) == answer


def test_a_command_that_takes_too_long_has_no_answer():
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert output_of(sleeper, seconds=0.2) is None


def test_a_command_runs_in_the_folder(tmp_path):
    here = output_of([sys.executable, "-c", "import os; print(os.getcwd())"], tmp_path)
    assert here == f"{tmp_path}\n"

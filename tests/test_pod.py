"""scripts/pod.sh with stand-ins for the commands that it gives: order, marks, going on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAND_IN = """#!/bin/sh
echo "$(basename $0) $*" >> "$CALLS"
case "$(basename $0) $*" in
    "$FAILS"*) echo "it broke"; exit 3;;
    nvidia-smi*) echo 0; echo 1;;
    "dvc remote list") echo "$REMOTE";;
esac
"""


@pytest.fixture
def pod(tmp_path: Path):
    """Run the script in a project's folder of its own; return its code, output and calls."""
    tools = tmp_path / ".venv/bin"
    tools.mkdir(parents=True)
    for name in ("make", "paramgolf", "dvc", "nvidia-smi"):
        (tools / name).write_text(STAND_IN)
        (tools / name).chmod(0o755)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    script = shutil.copy(ROOT / "scripts/pod.sh", tmp_path / "scripts")

    def run(*words: str, **variables: str) -> tuple[int, str, list[str]]:
        calls = tmp_path / "calls"
        calls.write_text("")
        made = {"CALLS": str(calls), "FAILS": "nothing", "REMOTE": "", "TORCH_INDEX": "an address"}
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        done = subprocess.run(
            [script, *words],
            env=kept | made | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout, calls.read_text().splitlines()

    return run


def test_each_step_is_given_once_and_in_order(pod, tmp_path):
    code, _, calls = pod("pr1493", "train.steps=5", PRICE="3", SEEDS="1 2", REMOTE="shared x")
    assert code == 0
    assert calls == [
        "make gpu",
        "paramgolf use pr1493 train.steps=5",
        "nvidia-smi --list-gpus",
        "paramgolf estimate pr1493 train.steps=5 --gpus 2 --price 3",
        "dvc repro audit",
        "paramgolf rehearse pr1493 train.steps=5",
        "dvc exp run --name pr1493-d3904708-seed1 --set-param train.seed=1",
        "dvc exp run --name pr1493-d3904708-seed2 --set-param train.seed=2",
        "dvc remote list",
        "dvc exp push origin pr1493-d3904708-seed1 pr1493-d3904708-seed2",
        "paramgolf compare pr1493-d3904708-seed1 pr1493-d3904708-seed2",
    ]


def test_the_same_command_goes_on_where_it_was_cut_off(pod, tmp_path):
    code, output, _ = pod("pr1493", FAILS="dvc exp run")
    assert code == 3
    assert "it broke" in output
    assert "it broke" in (tmp_path / "repro.log").read_text()
    code, output, calls = pod("pr1493")
    assert code == 0
    assert "tokens was done before" in output
    assert "it broke" not in (tmp_path / "repro.log").read_text()  # `paramgolf watch` reads it
    assert "it broke" in (tmp_path / "before.log").read_text()
    assert [call for call in calls if not call.startswith("nvidia-smi")] == [
        "paramgolf use pr1493",
        "dvc exp run --name pr1493-seed1337 --set-param train.seed=1337",
        "dvc remote list",
        "paramgolf compare pr1493-seed1337",
    ]
    assert "make gpu" in pod("pr1855")[2]  # another run has marks of its own


def test_going_on_after_another_run_trains_the_first_recipe(pod):
    """params.yaml is shared: whoever ran last wrote it."""
    assert pod("pr1493", SEEDS="1 2", FAILS="dvc exp run --name pr1493-seed2")[0] == 3
    assert "paramgolf use pr1855" in pod("pr1855")[2]
    calls = pod("pr1493", SEEDS="1 2")[2]
    made = [call for call in calls if call.startswith(("paramgolf use", "dvc exp"))]
    assert made == [
        "paramgolf use pr1493",
        "dvc exp run --name pr1493-seed2 --set-param train.seed=2",
    ]


def test_a_submission_is_made_where_it_has_a_name(pod):
    about = {"NAME": "A B", "BLURB": "What it does", "GITHUB_ID": "me"}
    calls = pod("best", SEEDS="1 2", **about)[2]
    wanted = "paramgolf submit best-seed1 best-seed2 --name A B --blurb What it does --github-id me"
    assert wanted in calls


def test_more_seeds_are_pushed_and_another_submission_is_made(pod):
    about = {"NAME": "A", "BLURB": "B", "GITHUB_ID": "me", "REMOTE": "shared x"}
    ends = ("dvc exp push", "paramgolf submit")

    def end(seeds: str, **changes: str) -> list[str]:
        calls = pod("best", SEEDS=seeds, **about | changes)[2]
        return [call.partition(" --name")[0] for call in calls if call.startswith(ends)]

    one, two = "best-seed1", "best-seed1 best-seed2"
    assert end("1") == [f"dvc exp push origin {one}", f"paramgolf submit {one}"]
    assert end("1 2") == [f"dvc exp push origin {two}", f"paramgolf submit {two}"]
    assert end("1 2") == [f"dvc exp push origin {two}"]  # nothing new to hand in
    assert f"paramgolf submit {two}" in end("1 2", BLURB="C")


def test_runs_with_other_changes_have_other_names(pod):
    """DVC refuses a name that an experiment has already."""
    runs = [
        pod("best", *changes)[2] for changes in ([], ["verify.enforce=false"], ["train.steps=5"])
    ]
    names = {call.split()[4] for calls in runs for call in calls if call.startswith("dvc exp run")}
    assert len(names) == 3
    assert "best-seed1337" in names


@pytest.mark.parametrize(
    ("words", "index", "message"),
    [
        ([], "an address", "usage: scripts/pod.sh RECIPE"),
        (["pr9"], "an address", "there is no recipe pr9"),
        (["pr1493"], "", "set TORCH_INDEX"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(words, index, message, pod):
    code, output, calls = pod(*words, TORCH_INDEX=index)
    assert (code, calls) == (2, [])
    assert message in output

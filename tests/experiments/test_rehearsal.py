"""`paramgolf rehearse`: what it shortens, where it runs, and what it says of a fault."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from shard_files import write_token_set

from paramgolf.experiments import rehearsal
from paramgolf.experiments.lab.stages import Processes, StageError
from paramgolf.files import write_json
from paramgolf.params import read_yaml
from paramgolf.recipes import build, flatten, names

ROOT = Path(__file__).parents[2]
KEPT = ("model.width", "eval_sliding.window", "eval_ttt.documents.batch_documents", "train.seed")


@pytest.mark.parametrize("name", names(ROOT / "recipes"))
def test_every_recipe_can_be_shortened_and_keeps_its_shapes_and_phases(name):
    recipe = build(name, folder=ROOT / "recipes")
    short = build(name, rehearsal.shortened(recipe), ROOT / "recipes")
    for key in KEPT:
        assert flatten(short)[key] == flatten(recipe)[key]
    for key in ("batch_tokens", "micro_batch_tokens", "sequence_length"):
        assert short["train"][key] == recipe["train"][key]
    assert short["train"]["steps"] == rehearsal.STEPS
    starts = [phase["at"] for phase in short["model"]["recurrence"]]
    assert [p["order"] for p in short["model"]["recurrence"]] == [
        p["order"] for p in recipe["model"]["recurrence"]
    ]
    assert all(0 < at * rehearsal.STEPS < rehearsal.STEPS for at in starts)
    assert short["eval_ttt"]["max_tokens"] == rehearsal.EVALUATED_TOKENS


def test_what_is_shorter_already_stays_as_short():
    own = {"train.steps": 5, "eval_sliding.max_tokens": 3000}
    recipe = build("sample", list(own.items()), ROOT / "recipes")
    short = flatten(build("sample", rehearsal.shortened(recipe), ROOT / "recipes"))
    assert {key: short[key] for key in own} == own


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with tokens of the sample's vocabulary, whose stages are stand-ins."""
    few = [np.arange(100)]
    folder = tmp_path / "data/tokens"
    write_token_set(folder, train=few, val=few, val_bytes=few, vocab_size=1024)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)

    def run(self, stage, place, environment):
        assert Path(environment["DVC_ROOT"]) == (tmp_path / ".cache/rehearsal")
        assert (place.folder / "data/tokens/manifest.json").is_file()
        found = {"startup_seconds": 3.0, "peak_memory_bytes": 2**31} if stage == "train" else {}
        write_json(place.folder / f"artifacts/metrics/{stage}.json", found)
        return 5.0

    monkeypatch.setattr(Processes, "run", run)
    return tmp_path


def test_all_stages_run_in_a_folder_of_their_own(project, command):
    left = project / ".cache/rehearsal/.resume/old"
    left.mkdir(parents=True)
    shown = command("rehearse", "sample", "train.seed=7").splitlines()
    assert [line.split()[0] for line in shown[:-1]] == list(rehearsal.STAGES)
    assert shown[0].endswith(
        "5.0 s, 3.0 of them until the first step, 2.0 GiB of memory at the peak"
    )
    assert shown[-1] == "30 s in all"
    assert read_yaml(project / ".cache/rehearsal/params.yaml")["train"]["seed"] == 7
    assert not left.exists()
    assert not (project / "artifacts").exists()


def test_a_stage_that_fails_ends_it(project, monkeypatch, command):
    def fail(self, stage, place, environment):
        raise StageError(stage, "out of memory", killed=False)

    monkeypatch.setattr(Processes, "run", fail)
    (found,) = json.loads(command("rehearse", "sample", "--json", code=1))
    assert (found["stage"], found["reason"]) == ("train", "out of memory")
    shown = command("rehearse", "sample", code=1)
    assert "what it said: .cache/rehearsal/train.log" in shown


def test_tokens_of_another_recipe_are_refused(project, command):
    message = command("rehearse", "pr1493", code=2)
    assert "expected: a vocabulary of 8192" in message
    assert "found: 1024" in message

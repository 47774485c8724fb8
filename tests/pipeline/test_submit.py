"""`paramgolf submit` on real runs: the folder, run by itself, and every refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_case import Project, clone

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]
ABOUT = ("--name", "Small one", "--blurb", "Sizes | of a toy.", "--github-id", "me")
OPEN_TRACK = ("--track", "non_record_16mb")


def submit(project: Project, *words: str, code: int = 0) -> str:
    output = project.run("python", "-m", "paramgolf.cli", "submit", *words, code=code)
    assert "Traceback" not in output
    return output


@pytest.fixture(scope="session")
def folder(seeded: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A submission of two seeds and the committed run, elsewhere than the project."""
    out = tmp_path_factory.mktemp("submission") / "folder"
    words = ("--out", str(out), "--against", "pr1855", "--credit", "Muon=#1, its authors")
    output = submit(seeded, "2-seed", "1-seed", "HEAD", *ABOUT, *OPEN_TRACK, *words)
    assert output.splitlines()[-1] == str(out)
    return out


def test_the_folder_has_what_the_contest_asks_for(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "model.bin",
        "params.yaml",
        "requirements.txt",
        "submission.json",
        "train_gpt.py",
        "train_seed1.log",
        "train_seed1337.log",
        "train_seed2.log",
    ]
    packages = (folder / "requirements.txt").read_text().split()
    names = {line.partition("==")[0].lower() for line in packages}
    expected = {"brotli", "numpy", "pyyaml", "safetensors", "sentencepiece", "torch", "tqdm"}
    assert names - {"triton"} == expected


def test_submission_json_tells_what_was_measured(folder, seeded):
    content = json.loads((folder / "submission.json").read_text())
    assert content["seeds"] == [2, 1, 1337]
    committed = seeded.metrics("eval_ttt")
    assert content["seed_results"]["1337"]["val_bpb"] == committed["val_bpb"]
    scores = [found["val_bpb"] for found in content["seed_results"].values()]
    assert content["val_bpb"] == pytest.approx(sum(scores) / 3)
    assert content["val_bpb_std"] > 0
    sizes = [(folder / name).stat().st_size for name in ("model.bin", "train_gpt.py")]
    assert content["bytes_total"] == sum(sizes)
    assert content["artifact_bytes_max"] >= content["artifact_bytes_mean"]
    assert all(content["compliance"].values())
    assert content["parameters"]["train"]["steps"] == 12
    assert content["attribution"] == {"Muon": "#1, its authors"}
    assert content["comparison"]["against"]["label"] == "pr1855"
    assert content["comparison"]["verdict"]["difference_bpb"] > 1


def test_logs_and_readme(folder):
    log = (folder / "train_seed2.log").read_text().splitlines()
    assert log[0].startswith("start seed=2 ")
    assert sum(line.startswith("step ") for line in log) == 12
    assert any(line.startswith("eval_ttt ") and " val_bpb=" in line for line in log)
    text = (folder / "README.md").read_text()
    assert "| 1337 | " in text
    assert "- R1, artifact fits its bytes" in text
    assert "| train.steps | null | 12 |" in text
    assert "p = " in text
    assert "- Muon: #1, its authors" in text


def test_the_command_of_the_readme_gives_the_score_anywhere(folder, seeded, tmp_path):
    """Its shell line, in the folder, with an interpreter that does not know the project."""
    text = (folder / "README.md").read_text()
    (line,) = [line for line in text.splitlines() if line.endswith("--data TOKENS")]
    line = line.replace("python", f"{sys.executable} -I", 1)
    result = tmp_path / "metrics.json"
    line = line.replace("TOKENS", f"{seeded.folder}/data/tokens --device cpu --json {result}")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(line, shell=True, cwd=folder, env=environment, check=True, capture_output=True)
    content = json.loads((folder / "submission.json").read_text())
    assert json.loads(result.read_text())["val_bpb"] == content["seed_results"]["2"]["val_bpb"]


def test_the_workspace_is_handed_in_where_nothing_is_named(sibling):
    output = submit(sibling, *ABOUT, *OPEN_TRACK)
    made = sibling.folder / output.splitlines()[-1]
    assert made.parent.name == "track_non_record_16mb"
    assert made.name.endswith("_Small_one")
    assert json.loads((made / "submission.json").read_text())["val_bpb_std"] is None
    assert "is there already" in submit(sibling, *ABOUT, *OPEN_TRACK, code=2)


def test_all_that_a_record_lacks_is_listed(seeded):
    error = submit(seeded, "1-seed", code=2)
    for line in (
        "- --name is not given",
        "- --github-id is not given",
        "- --blurb is not given",
        "- `1-seed`: a record is trained on 8 x H100, this was on 1 x cpu",
        "- 2 more seeds are needed, a record has 3",
    ):
        assert line in error
    assert not (seeded.folder / "submissions").exists()


def test_a_workspace_that_is_not_what_was_run_is_refused(sibling):
    sibling.set({"quantize": {"matrix_bits": 5}})
    error = submit(sibling, *ABOUT, *OPEN_TRACK, code=2)
    assert "`workspace`: quantize, report must be run: `dvc repro`" in error


def test_broken_rules_and_loosened_limits_are_refused(sibling):
    sibling.set({"package": {"limit_bytes": 20_000_000}, "verify": {"train_seconds": 1e-3}})
    sibling.run("dvc", "repro")
    sibling.commit("looser")
    sibling.set({"quantize": {"matrix_bits": 5}})
    sibling.run("dvc", "repro", "quantize")
    error = submit(sibling, "HEAD", "HEAD~1", *ABOUT, *OPEN_TRACK, code=2)
    assert "`HEAD`: R2 is broken, training fits its time: " in error
    assert (
        "`HEAD`: package.limit_bytes must be 16000000, as the contest's; it was 20000000" in error
    )
    assert "the runs must differ by train.seed alone, they are 2 systems" in error
    assert "seeds that were named more than once: 1337" in error


def test_runs_whose_outputs_are_elsewhere_are_refused(project, tmp_path):
    bare = clone(project, tmp_path / "bare")
    error = submit(bare, "HEAD", *ABOUT, *OPEN_TRACK, code=2)
    assert "`HEAD`: not in DVC's cache: artifacts/package/model.bin" in error
    assert "`dvc fetch`" in error


def test_a_folder_that_scores_otherwise_is_not_made(sibling):
    """A score that was written by hand."""
    path = sibling.folder / "artifacts/metrics/eval_ttt.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "val_bpb": content["val_bpb"] - 0.01}))
    sibling.commit("a better score")
    error = submit(sibling, "HEAD", *ABOUT, *OPEN_TRACK, code=2)
    assert "the model does not score what was recorded" in error
    assert "where: eval_ttt.val_bpb" in error
    assert not list((sibling.folder / "submissions").glob("*/*"))


def test_a_script_that_was_changed_is_not_handed_in(sibling):
    """It could print what was recorded without scoring anything, and DVC was told that it is so."""
    path = sibling.folder / "artifacts/package/train_gpt.py"
    content = path.read_bytes() + b"# not packed\n"
    path.unlink()
    path.write_bytes(content)
    metrics = sibling.folder / "artifacts/metrics/package.json"
    recorded = json.loads(metrics.read_text())
    recorded["bytes_code"] += len(b"# not packed\n")
    metrics.write_text(json.dumps(recorded))
    sibling.run("dvc", "commit", "-f")
    sibling.commit("another script")
    error = submit(sibling, "HEAD", *ABOUT, *OPEN_TRACK, code=2)
    assert "`HEAD`: train_gpt.py is not what the run's own code packs to" in error

"""The page that compares runs: each run's figures, with metrics, logs and ledgers missing."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from page_case import PARAMS, compared_runs, made
from page_check import outside_references, text_of
from repository_case import Repository
from run_files import metrics, write_run

from paramgolf.files import write_text
from paramgolf.recipes import flatten
from paramgolf.report import comparison as views
from paramgolf.report.comparison import render_comparison
from paramgolf.report.runs import ShownRun


@pytest.fixture(scope="module")
def runs() -> list[ShownRun]:
    return compared_runs()


@pytest.fixture(scope="module")
def page(runs: list[ShownRun]) -> str:
    return render_comparison(runs, {})


def test_the_page_is_well_formed_and_shows_each_run(page):
    shown = text_of(page)
    assert "2 runs side by side" in shown
    assert "base 1.7702 1.7931 1.8127 1.8012 578,000 400 96" in shown
    assert "verify.enforce" not in shown.partition("What differs")[2].partition("Every metric")[0]
    assert "−0.0297" in shown  # 1.7603 - 1.79
    for heading in ("Results", "Score, step by step", "Training", "Where the bytes went"):
        assert heading in shown
    assert not outside_references(page)


def test_the_lowest_score_is_marked_and_no_count(runs):
    base, wide = views.shown(runs)
    assert [best for _, best in wide.cells[:3]] == [True] * 3
    assert not any(best for _, best in base.cells[:3])
    assert all(not best for row in (base, wide) for _, best in row.cells[4:])
    (alone,) = views.shown(runs[:1])
    assert not any(best for _, best in alone.cells)


def test_what_differs_has_a_row_a_run_or_a_row_a_parameter(runs):
    """Whichever table is the taller, so that it is not the wider."""
    shown = text_of(render_comparison(runs, {}))
    assert "run quantize.mlp_clip base 12.85 wide 11.5" in shown
    other = {"quantize.mlp_clip": 11.5, "train.seed": 2, "train.matrix_lr": 0.1}
    shown = text_of(render_comparison([runs[0], made("other", other)], {}))
    assert "parameter base other train.seed 1337 2 train.matrix_lr 0.022 0.1" in shown
    assert "No parameter." in text_of(render_comparison([runs[0], made("same")], {}))


def test_a_change_that_rounds_to_nothing_is_neither_good_nor_bad():
    (flat,) = views.shown([made("flat", scores=(1.7702, 1.812701, 1.8127))])
    assert [score.trend for score in flat.scores] == ["same", "worse", "same", "better"]


def test_curves_of_all_runs_lie_in_one_picture(runs, page):
    assert "base ends at" in page
    assert "wide ends at" in page
    assert "wide, step 100:" in page  # what a dot says where the reader points at it
    assert page.count("<svg") == 2
    without_logs = render_comparison([made("x", log=None)], {})
    assert without_logs.count("<svg") == 1
    assert "No training log is at hand." in without_logs


def test_more_runs_than_colours_are_dashed():
    many = [made(f"run-{i}") for i in range(9)]
    assert [row.line for row in views.shown(many)][-2:] == ["l7", "l0 dash"]


@pytest.mark.parametrize("limit", ["16 MB", [16_000_000], {"bytes": 16}, True])
def test_a_limit_that_is_no_number_is_not_shown(limit):
    (run,) = [made("odd")]
    odd = dataclasses.replace(run, metrics={**run.metrics, "package.limit_bytes": limit})
    assert "The limit is" not in text_of(render_comparison([odd], {}))


def test_bytes_by_family_add_up(runs):
    (base, _) = views.shown(runs)
    assert base.total == 578_000
    assert sum(size for _, size, _ in base.parts) == 578_000
    assert sum(width for *_, width in base.parts) == pytest.approx(100)
    (bare,) = views.shown([made("bare", parts=None)])
    assert [(family, size) for family, size, _ in bare.parts] == [
        ("model", 560_000),
        ("code", 18_000),
    ]


@pytest.mark.parametrize(
    "missing",
    [
        ["eval_ttt.val_bpb"],
        ["eval_sliding.val_bpb_plain", "train.val_bpb"],
        ["package.bytes_model", "package.bytes_code", "package.bytes_total"],
        [key for key in flatten(metrics()) if key.startswith(("eval_", "package.", "train."))],
    ],
)
def test_a_run_that_lacks_metrics_is_shown_with_what_it_has(missing, runs):
    kept = {key: v for key, v in flatten(metrics()).items() if key not in missing}
    bare = ShownRun("bare", PARAMS, kept)
    shown = text_of(render_comparison([*runs, bare], {}))
    assert "no training log at hand of bare" in shown
    assert "–" in shown
    text_of(render_comparison([bare], {}))


def test_a_change_after_a_missing_score_is_from_the_nearest_before():
    kept = {k: v for k, v in flatten(metrics()).items() if k != "eval_sliding.val_bpb"}
    (bare,) = views.shown([made("bare", metrics=kept)])
    changes = [score.change for score in bare.scores]
    assert changes[0] is None
    assert changes[2] is None
    assert changes[3] == pytest.approx(1.7702 - 1.8127)


@pytest.mark.parametrize(
    ("changes", "changed_metrics", "warning"),
    [
        ({}, {"eval_ttt.bytes_scored": 5}, "adapted scores are of different texts"),
        ({}, {"eval_ttt.bytes_scored": 5}, "eval_ttt scored a part of the text"),
        ({}, {"train.device": "H100"}, "different devices"),
        ({"tokenizer.vocab_size": 2048}, {}, "nats per token do not compare"),
        ({"eval_ttt.mode": "none"}, {}, "eval_ttt did not score alike: sgd, stream order / none"),
        (
            {"eval_ttt.mode": "lora_documents"},
            {},
            "stream order / lora_documents, length order",
        ),
    ],
)
def test_what_makes_runs_hard_to_compare_is_said(changes, changed_metrics, warning):
    other = made("other", changes, metrics={**flatten(metrics()), **changed_metrics})
    (shared,) = views.warnings([made("base"), made("again")], {})
    assert shared.endswith("their curves lie on one another: base, again.")
    assert any(warning in text for text in views.warnings([made("base"), other], {}))


def test_text_from_outside_is_escaped():
    page = render_comparison([made("<b>x</b>")], {"<i>": "<u>"})
    assert "<b>x</b>" not in page
    assert "<u>" not in page


# the command


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Git repository with a run in a commit tagged `first`, and another in the workspace."""
    write_run(tmp_path)
    repository = Repository(tmp_path)
    repository.begin()
    repository.commit("run", "params.yaml", "artifacts/metrics")
    repository.run("git", "tag", "first")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(command: Callable[..., str]) -> Callable[..., str]:
    """Run `paramgolf report`; return what it prints."""
    return functools.partial(command, "report")


def test_the_command_writes_the_page_of_a_commit_and_the_workspace(project, call):
    write_run(project, {"eval_ttt": {"val_bpb": 1.7501}})
    assert "artifacts/compare.html: 2 runs (first, workspace)" in call("first", "workspace")
    shown = text_of((project / "artifacts/compare.html").read_text())
    assert "first 1.7702" in shown
    assert "workspace 1.7501" in shown
    assert "no training log at hand of first" in shown  # no cache holds it
    assert "workspace ends at" in shown
    before = (project / "artifacts/compare.html").read_bytes()
    call("first", "workspace", "--out", "again.html")
    assert (project / "again.html").read_bytes() == before


def test_equal_runs_count_once(project, call):
    assert "1 run (first)" in call("first", "workspace")


def test_a_workspace_without_metrics_is_left_out(project, call):
    for path in (project / "artifacts/metrics").iterdir():
        path.unlink()
    assert "left out: workspace: it has no metrics of its own" in call("first", "workspace")
    assert "there is no run to show" in call("workspace", code=2)


MAKE = """
import json, pathlib, shutil, yaml
seed = yaml.safe_load(open("params.yaml"))["train"]["seed"]
for name in ("train", "package"):
    shutil.copytree(f"kept/{name}", f"artifacts/{name}", dirs_exist_ok=True)
path = pathlib.Path("artifacts/metrics/eval_ttt.json")
path.write_text(json.dumps(json.loads(path.read_text()) | {"val_bpb": 1.7 + seed / 1e4}))
"""


@pytest.mark.pipeline
def test_logs_and_ledgers_of_experiments_come_from_dvcs_cache(project, call):
    """Each experiment's files are read at its own commit, whatever the workspace holds."""
    (project / "kept").mkdir()
    for name in ("train", "package"):
        (project / "artifacts" / name).rename(project / "kept" / name)
    outs = ["artifacts/train", "artifacts/package"]
    metric = {"artifacts/metrics/eval_ttt.json": {"cache": False, "persist": True}}
    stage = {"cmd": f"{sys.executable} make.py", "params": ["train"], "outs": [*outs, metric]}
    write_text(project / "make.py", MAKE)
    write_text(project / "dvc.yaml", yaml.safe_dump({"stages": {"all": stage}}))
    Repository(project).make_experiments(11, 12)
    shutil.rmtree(project / "artifacts/train")
    assert "2 runs (made-11, made-12)" in call()
    page = (project / "artifacts/compare.html").read_text()
    shown = text_of(page)
    assert "made-11 1.7011" in shown
    assert "made-12 ends at" in shown
    assert "no training log" not in shown
    assert page.count("<svg") == 2
    assert "attention" in shown  # families are known from package.json alone


def test_what_another_run_made_is_not_shown(project, call):
    """Parameters that were changed since are not those of the scores that lie there."""
    steps = yaml.safe_load((project / "params.yaml").read_text())["eval_ttt"]
    stages = {"eval_ttt": {"params": {"params.yaml": {"eval_ttt": steps | {"lr": 0.5}}}}}
    write_text(project / "dvc.lock", yaml.safe_dump({"schema": "2.0", "stages": stages}))
    call("workspace")
    shown = text_of((project / "artifacts/compare.html").read_text())
    assert "not shown of workspace, as made with another eval_ttt.lr: eval_ttt." in shown
    assert "workspace – 1.7931" in shown


def test_a_log_that_is_being_written_is_left_out(project, call):
    path = project / "artifacts/train/log.jsonl"
    path.write_text(path.read_text()[:-20])
    assert "1 run (workspace)" in call("workspace")
    shown = text_of((project / "artifacts/compare.html").read_text())
    assert "no training log at hand of workspace" in shown


def test_a_damaged_ledger_is_named(project, call):
    (project / "artifacts/package/package.json").write_text("{")
    assert "workspace: artifacts/package/package.json" in call("workspace", code=2)


def test_an_experiment_that_is_not_there_is_one_message_and_code_2(project, call):
    assert "there is no experiment `nothing`" in call("nothing", code=2)


def test_more_runs_than_lines_are_refused(project, call):
    repository = Repository(project)
    for i in range(17):
        write_run(project, {"eval_ttt": {"val_bpb": 1.7 + i / 1000}})
        repository.commit(f"{i}", "artifacts/metrics")
        repository.run("git", "tag", f"t{i}")
    error = call(*(f"t{i}" for i in range(17)), code=2)
    assert "too many runs for one page" in error
    assert "found: 17" in error

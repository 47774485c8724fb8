"""`paramgolf compare` on experiments made up in a Git repository, and on one that dvc made."""

from __future__ import annotations

import copy
import functools
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from repository_case import Repository
from scipy import stats

from paramgolf.experiments.paired import power_of
from paramgolf.experiments.read import FILES, parse
from paramgolf.files import write_text
from paramgolf.params import read_yaml

PARAMS: dict[str, Any] = {
    "train": {"seed": 1, "adam_eps": 1e-08},
    "quantize": {"matrix_bits": 6, "mlp_clip": 12.85},
    "runtime": {"device": "auto"},
}
METRICS: dict[str, Any] = {
    "train": {"steps": 4550, "val_bpb": 1.08, "device": "NVIDIA H100", "world_size": 8}
    | {"torch": "2.11.0", "val_loss": 2.79},
    "package": {"bytes_total": 15_990_000, "fits": True},
    "eval_sliding": {"val_bpb": 1.083, "val_bpb_plain": 1.09, "val_loss": 2.798}
    | {"bytes_scored": 151_080_891},
    "eval_ttt": {"val_bpb": 1.081, "val_loss": 2.7923, "bytes_scored": 151_080_891},
}
BASE = {1: 1.0810, 2: 1.0812, 3: 1.0808}
WIDE = {1: 1.0720, 2: 1.0722, 3: 1.0718}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with values of `changes`, given by dotted key."""
    content = copy.deepcopy(dict(base))
    for key, value in changes.items():
        section, name = key.split(".")
        content.setdefault(section, {})[name] = value
    return content


def files_of(params: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, str]:
    contents = {"params.yaml": yaml.safe_dump(merged(PARAMS, params))}
    for stage, values in merged(METRICS, metrics).items():
        contents[f"artifacts/metrics/{stage}.json"] = json.dumps(values)
    return contents


class Project(Repository):
    """A Git repository with a first commit, the working folder of the test."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.begin()
        records = (Path(__file__).parents[2] / "recipes/records.yaml").read_text()
        write_text(folder / "recipes/records.yaml", records)
        self.commit("start")

    def add(
        self, name: str, params: Mapping[str, Any], metrics: Mapping[str, Any], baseline: str = ""
    ) -> None:
        """Store an experiment as dvc does: a commit under refs/exps/BASELINE/NAME."""
        baseline = baseline or self.head
        reference = f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}"
        stream = f"commit {reference}\ncommitter x <x> 0 +0000\ndata 0\n"
        for path, content in files_of(params, metrics).items():
            stream += f"M 100644 inline {path}\ndata {len(content.encode())}\n{content}\n"
        self.run("git", "fast-import", "--quiet", "--force", text=stream)

    def add_seeds(self, name: str, scores: Mapping[int, float], **params: Any) -> None:
        changes = {key.replace("__", "."): value for key, value in params.items()}
        for seed, score in scores.items():
            self.add(f"{name}-{seed}", {**changes, "train.seed": seed}, {"eval_ttt.val_bpb": score})

    def write(self, params: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        for path, content in files_of(params, metrics).items():
            write_text(self.folder / path, content)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path)
    made.add_seeds("base", BASE)
    made.add_seeds("wide", WIDE, quantize__mlp_clip=11.5)
    return made


@pytest.fixture
def compare(command: Callable[..., str]) -> Callable[..., str]:
    """Run `paramgolf compare`; return what it prints."""
    return functools.partial(command, "compare")


@pytest.fixture
def compared(compare: Callable[..., str]) -> Callable[..., dict[str, Any]]:
    """Run the command with --json; return the content."""
    return lambda *words: json.loads(compare(*words, "--json"))


# groups and tests


def test_runs_of_equal_seeds_are_paired(project, compare):
    scores = {3: 1.0711, 1: 1.0720, 2: 1.0732}
    project.add_seeds("odd", scores, quantize__mlp_clip=11.0)
    result = json.loads(compare("base-*", "odd-*", "--paired", "--json"))
    none, odd = result["paired"]
    assert none is None
    differences = [scores[seed] - BASE[seed] for seed in BASE]
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (odd["n"], odd["replicates"]) == (3, "other seeds")
    assert odd["mean"] == pytest.approx(sum(differences) / 3)
    assert (odd["low"], odd["high"]) == pytest.approx((interval.low, interval.high))
    assert result["power"]["freedom"] == 4
    shown = compare("base-*", "wide-*", "--paired")
    assert "minus group 1, seed by seed" in shown
    assert "one run's deviation is 0.0002 (measured, 4 degrees of freedom): 3 seeds" in shown


def test_one_degree_of_freedom_is_singular():
    assert "(measured, 1 degree of freedom)" in power_of(0.001, 1, 3).sentence()


def test_seeds_are_grouped_and_tested(project, compared):
    result = compared("base-*", "wide-*")
    first, second = result["groups"]
    assert first["label"] == "quantize.mlp_clip=12.85"
    assert second["label"] == "quantize.mlp_clip=11.5"
    assert second["seeds"] == [1, 2, 3]
    found = second["metrics"]["eval_ttt.val_bpb"]
    assert (found["n"], found["mean"]) == (3, pytest.approx(1.0720))
    assert found["deviation"] == pytest.approx(2e-4)
    assert first["verdict"] is None
    verdict = second["verdict"]
    # -0.009 / sqrt(2 x (2e-4)^2 / 3)
    assert verdict["better"]["t"] == pytest.approx(-55.11, abs=0.01)
    assert (verdict["record"], verdict["progress"]) == (True, True)
    # the change in nats a token is that in bits a byte times nats a token over bits a byte
    assert verdict["difference_nats"] == pytest.approx(-0.009 * 2.7923 / 1.0720, rel=1e-9)
    assert first["flags"] == second["flags"] == []


def test_against_an_experiment_its_group_is_the_reference(project, compared):
    result = compared("base-*", "wide-1", "--against", "wide-2")
    assert result["against"]["kind"] == "group"
    assert [sorted(group["experiments"]) for group in result["groups"]] == [
        ["wide-1", "wide-2"],
        ["base-1", "base-2", "base-3"],
    ]
    assert result["groups"][1]["verdict"]["difference_bpb"] > 0


def test_a_record_can_be_the_reference(project, compared):
    result = compared("base-*", "wide-*", "--against", "pr1493")
    assert result["against"] == {
        "label": "pr1493",
        "pull_request": 1493,
        "kind": "record",
        "n": 3,
        "mean": pytest.approx(1.0810),
        "deviation": pytest.approx(0.000197, abs=1e-6),
    }
    same, better = (group["verdict"] for group in result["groups"])
    assert not same["progress"]
    assert better["record"]
    assert [group["flags"] for group in result["groups"]] == [[], []]


def test_a_record_of_another_machine_text_or_without_seeds_is_flagged(project, compared):
    changes = {"train.device": "cpu", "train.world_size": 1, "eval_sliding.bytes_scored": 356_499}
    project.add("small", {}, {**changes, "package.fits": False, "verify.passed": False})
    record = "pr9999: {pull_request: 9999, evaluation: adapted, mean: 1.05, training: {gpus: 8}}"
    (project.folder / "recipes/records.yaml").write_text(record)
    (group,) = compared("small", "--against", "pr9999")["groups"]
    assert group["verdict"]["better"] is None
    flags = "\n".join(group["flags"])
    for part in (
        "ours 1 x cpu",
        "356,499 bytes",
        "taken as exact",
        "does not fit",
        "breaks a rule",
    ):
        assert part in flags


def test_all_machines_of_a_group_are_named(project, compared):
    project.add("small", {"train.seed": 2}, {"train.device": "cpu"})
    (group,) = compared("base-1", "small", "--against", "pr1493")["groups"]
    assert any("machine: ours 8 x NVIDIA H100, 8 x cpu," in flag for flag in group["flags"])


@pytest.mark.parametrize("loss", [0, 0.0, -1.0])
def test_a_loss_of_no_sense_is_one_message(loss, project, compare):
    project.add("odd", {}, {"eval_ttt.val_loss": loss})
    error = compare("odd", "--against", "pr1493", code=2)
    assert "eval_ttt has no val_loss and val_bpb above 0" in error


def test_a_run_that_was_only_trained_is_held_against_a_record(project, compared):
    words = ("--score", "train.val_bpb", "--against", "pr1493")
    project.add("partial", {}, {"eval_sliding.bytes_scored": None})
    (group,) = compared("partial", *words)["groups"]
    assert not any("text" in flag for flag in group["flags"])
    project.add("small", {"train.seed": 2}, {"eval_sliding.bytes_scored": 356_499})
    (group,) = compared("base-1", "small", *words)["groups"]
    assert any("text: scored on 356,499 bytes" in flag for flag in group["flags"])


def test_a_record_is_held_against_the_score_that_it_submitted(project, compared):
    result = compared("base-*", "--against", "pr1296")
    assert result["score"] == "eval_sliding.val_bpb"
    assert result["groups"][0]["flags"] == []
    result = compared("base-*", "--against", "pr1296", "--score", "eval_ttt.val_bpb")
    (flag,) = result["groups"][0]["flags"]
    assert "the record's is sliding (eval_sliding.val_bpb)" in flag


def test_every_record_can_be_the_reference(project, compared):
    for name, record in read_yaml("recipes/records.yaml").items():
        result = compared("base-*", "--against", name)
        assert result["against"]["n"] == len(record.get("seeds", {}))
        assert result["against"]["pull_request"] == record["pull_request"]


def test_differences_of_machine_torch_and_steps_are_flagged(project, compared):
    changes = {"train.torch": "2.13.0", "train.world_size": 4, "train.steps": 4400}
    project.add("other", {"train.seed": 2}, {**changes, "eval_ttt.bytes_scored": 9})
    (group,) = compared("base-1", "base-2", "other")["groups"]
    assert group["flags"] == [
        "processes differ: 4, 8",
        "torch versions differ: 2.11.0, 2.13.0",
        "texts scored (their bytes) differ: 151080891, 9",
        "steps reached differ: 4,400 to 4,550",
        "seeds run more than once: 2",
    ]
    result = compared("wide-1", "other")
    assert "processes differ: 4, 8" in result["groups"][1]["flags"]


def test_what_a_run_lacks_is_no_difference(project, compared):
    lacking = {"eval_sliding.bytes_scored": None, "eval_ttt.bytes_scored": None}
    project.add("packed", {"quantize.mlp_clip": 11.0}, lacking)
    result = compared("base-1", "packed", "--score", "train.val_bpb")
    assert [group["flags"] for group in result["groups"]] == [[], []]


def test_numbers_that_dvc_writes_differently_are_one_group(project, compared):
    """`-S train.adam_eps=1e-8` is written as 1e-08, which YAML 1.1 reads as a text."""
    text = yaml.safe_dump(merged(PARAMS, {"train.seed": 4})).replace("1.0e-08", "1e-08")
    assert "1e-08" in text
    files = [text.encode(), *[b"{}"] * (len(FILES) - 1)]
    assert parse("x", files).params["train.adam_eps"] == 1e-08


# where runs come from


def test_the_workspace_is_compared_and_counts_once(project, compared):
    project.write({"train.seed": 1}, {"eval_ttt.val_bpb": BASE[1]})
    result = compared()
    assert [group["experiments"] for group in result["groups"]] == [
        ["base-1", "base-2", "base-3"],
        ["wide-1", "wide-2", "wide-3"],
    ]
    project.write({"train.seed": 4}, {"eval_ttt.val_bpb": 1.0805})
    assert compared()["groups"][0]["experiments"][-1] == "workspace"


def test_a_workspace_whose_parameters_were_changed_is_left_out(project, compared):
    project.write({"train.seed": 5, "quantize.matrix_bits": 5}, {})
    used = {"params.yaml": {"quantize": {"matrix_bits": 6, "mlp_clip": 12.85}}}
    model, score = {"path": "artifacts/quantize", "md5": "a"}, {"path": "score", "md5": "b"}
    stages = {
        "quantize": {"params": used, "outs": [model]},
        "eval_ttt": {"deps": [{**model}], "outs": [score]},
        "train": {"cmd": "x"},
    }
    lock = {"schema": "2.0", "stages": stages}
    write_text(project.folder / "dvc.lock", yaml.safe_dump(lock))
    reason = compared()["left_out"]["workspace"]
    assert reason == "its eval_ttt was made with another quantize.matrix_bits: `dvc repro`"
    (group,) = compared("workspace", "--score", "train.val_bpb")["groups"]
    assert "eval_sliding.val_bpb" in group["metrics"]  # not of this lock: taken as it is
    assert "eval_ttt.val_bpb" not in group["metrics"]


def test_a_run_without_the_score_is_named(project, compare):
    project.add("unfinished", {}, {"eval_ttt.val_bpb": None})
    text = compare("base-*", "unfinished")
    assert "- left out: unfinished: it has no eval_ttt.val_bpb" in text


def test_experiments_of_another_commit_need_all_or_their_name(project, compared):
    project.add("old", {"train.seed": 9}, {}, baseline="ab" * 20)
    project.write({"train.seed": 4}, {})
    assert "old" not in str(compared()["groups"])
    assert "old" in str(compared("--all")["groups"])
    assert compared("old")["groups"][0]["experiments"] == ["old"]


def test_all_has_both_runs_of_one_name_that_began_from_different_commits(project, compared):
    earlier = "ab" * 20
    project.add("same", {"train.seed": 8}, {})
    project.add("same", {"train.seed": 9}, {}, baseline=earlier)
    project.write({"train.seed": 4}, {})
    commits = [
        project.run("git", "rev-parse", f"refs/exps/{start[:2]}/{start[2:]}/same").strip()
        for start in (project.head, earlier)
    ]
    shown = str(compared("--all")["groups"])
    assert all(f"'same ({commit[:8]})'" in shown for commit in commits)
    assert "'base-1'" in shown
    assert "'same'" in str(compared()["groups"])
    (group,) = compared(commits[1][:8])["groups"]  # by which the other can be named
    assert group["seeds"] == [9]


def test_a_commit_is_an_experiment(project, compared):
    project.write({"train.seed": 7}, {})
    project.commit("a run")
    project.run("git", "tag", "v1")
    assert compared("v1")["groups"][0]["seeds"] == [7]


def test_a_project_below_the_repositorys_top(project, compared, monkeypatch):
    project.write({"train.seed": 7}, {})
    folder = project.folder / "below"
    for path in [*files_of({}, {}), "recipes/records.yaml"]:
        write_text(folder / path, (project.folder / path).read_text())
    project.commit("a run", "below")
    monkeypatch.chdir(folder)
    assert compared("HEAD")["groups"][0]["seeds"] == [7]


@pytest.mark.pipeline
def test_experiments_that_dvc_made(project, compared):
    """The workspace holds the last experiment's files: one run, counted once."""
    program = "import json, yaml; seed = yaml.safe_load(open('params.yaml'))['train']['seed']; "
    program += "score = {'val_bpb': 1.08 + seed / 1e4, 'val_loss': 2.8}; "
    program += "json.dump(score, open('artifacts/metrics/eval_ttt.json', 'w'))"
    write_text(project.folder / "make.py", program)
    stage = {
        "cmd": f"{sys.executable} make.py",
        "params": ["train"],
        "outs": [{"artifacts/metrics/eval_ttt.json": {"cache": False}}],
    }
    write_text(project.folder / "dvc.yaml", yaml.safe_dump({"stages": {"eval_ttt": stage}}))
    write_text(project.folder / "params.yaml", yaml.safe_dump(PARAMS))
    write_text(project.folder / "artifacts/metrics/.gitignore", "")
    project.make_experiments(11, 12)
    (group,) = compared()["groups"]
    assert (group["experiments"], group["seeds"]) == (["made-11", "made-12"], [11, 12])
    assert group["scores"] == pytest.approx([1.0811, 1.0812])


# what is printed


def test_the_table_fits_a_terminal(project, compare):
    text = compare("base-*", "wide-*", "--against", "pr1493")
    assert "against pr1493 (pg#1493): 1.08100 ± 0.00020, n 3" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "quantize.mlp_clip=12.85", "base-1,", "base-2,", "base-3"] in rows
    scores = ["2", "3", "1.07200", "±", "0.00020", "1.08300", "1.08000", "4,550", "15,990,000"]
    assert scores in rows
    (verdict,) = (row for row in rows if row[:2] == ["2", "-0.00900"])
    assert verdict[-2:] == ["yes", "yes"]
    assert max(map(len, text.splitlines())) <= 80


def test_markdown_holds_every_metric(project, compare):
    text = compare("base-*", "wide-*", "--markdown")
    assert "| 2 | quantize.mlp_clip=11.5 | wide-1, wide-2, wide-3 |" in text
    assert "| 2 | 3 | 1.07200 ± 0.00020 |" in text
    assert "| yes | yes |" in text
    assert "| package.bytes_total | 15990000 ± 0 | 15990000 ± 0 |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_more_seeds_are_asked_for(project, compare):
    project.add("one", {"quantize.matrix_bits": 7}, {"eval_ttt.val_bpb": 1.0760})
    text = compare("base-*", "one", "--markdown")
    assert re.search(r"\| - \| - \| \+\d seeds? \| \+1 seed \|", text)


def test_the_picture_is_the_same_each_time(project, compare):
    pictures = []
    for _ in range(2):
        compare("base-*", "wide-*", "--picture", "compare.png")
        pictures.append(Path("compare.png").read_bytes())
    assert pictures[0] == pictures[1]
    assert pictures[0].startswith(b"\x89PNG")


# bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "there is no experiment `nothing`"),
        (["base-*", "--against", "pr9"], "there is no record or experiment `pr9`"),
        (["base-*", "--paired", "--against", "pr1855"], "--paired needs runs of ours"),
        (["base-*", "--score", "bits"], "invalid choice: 'bits'"),
        (["base-*", "--score", "train.val_bpb", "--json", "--markdown"], "not allowed with"),
        (["HEAD"], "`HEAD` has no params.yaml"),
        ([], "`workspace` has no params.yaml"),
    ],
)
def test_bad_input_is_one_message_and_code_2(words, message, project, compare):
    assert message in compare(*words, code=2)


def test_nothing_to_compare_says_why(project, compare):
    project.add("unfinished", {}, {"eval_ttt.val_bpb": None})
    error = compare("unfinished", code=2)
    assert "there is nothing to compare" in error
    assert "unfinished: it has no eval_ttt.val_bpb" in error


def test_a_reference_that_cannot_be_compared_is_refused(project, compare, compared):
    project.add("unfinished", {"quantize.matrix_bits": 5}, {"eval_ttt.val_bpb": None})
    error = compare("base-*", "wide-*", "--against", "unfinished", code=2)
    assert "--against cannot be compared with" in error
    assert "unfinished: it has no eval_ttt.val_bpb" in error
    project.add("wide-4", {"train.seed": 4}, {"eval_ttt.val_bpb": None})
    result = compared("base-*", "--against", "wide-*")  # the others of the name can be
    assert result["groups"][0]["experiments"] == ["wide-1", "wide-2", "wide-3"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("artifacts/metrics/train.json", "{", "not JSON"),
        ("artifacts/metrics/train.json", "[]", "not a JSON object"),
        ("params.yaml", "train: &a [*a]", "not YAML"),
        ("params.yaml", "- train", "not a YAML mapping"),
        ("dvc.lock", "stages: {train: {outs: [artifacts]}}", "`stages.train.outs.0` must be a"),
        ("dvc.lock", "stages: []", "`stages` must be a mapping"),
    ],
)
def test_a_damaged_file_is_named_with_its_run(project, compare, file, content, message):
    project.write({}, {})
    write_text(project.folder / file, content)
    error = compare("workspace", code=2)
    assert message in error
    assert f"workspace: {file}" in error

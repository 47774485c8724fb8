"""Benchmarks can be started; how figures are kept; what benchmarks/recipes.py runs and compares."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from paramgolf.errors import ParamGolfError
from paramgolf.params import read_yaml

ROOT = Path(__file__).parents[1]
TEXT = ["data.source=files", "data.files=[some.jsonl]", "tokenizer.source=train"]


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    names = ("curves", "fp8", "projects", "recipe_results", "recipes")
    names += ("several_gpus", "tables", "train_speed")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def test_every_benchmark_finds_what_it_imports():
    """They are seldom run; what they import moves."""
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    command = [sys.executable, "-c", f"import {', '.join(names)}"]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [("curves", ["DIR"]), ("fp8", []), ("several_gpus", ["DIR"]), ("train_speed", ["--attention"])],
)
def test_what_measures_gpus_says_so_without_one(modules, monkeypatch, name, words):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("sys.argv", [f"{name}.py", *words])
    with pytest.raises(ParamGolfError, match="this measures GPUs"):
        getattr(modules, name).main()


@pytest.fixture
def measure(modules, monkeypatch, tmp_path):
    """Enter figures as a benchmark does that some words started on some machine."""

    def enter(device: str, words: list[str], **figures: float) -> tuple[list[dict], str]:
        monkeypatch.setattr(modules.tables, "RESULTS", tmp_path)
        monkeypatch.setattr(modules.tables, "device_name", lambda: device)
        monkeypatch.setattr("sys.argv", ["/a/clone/benchmarks/speed.py", *words])
        rows = [modules.tables.Row(f, v, "s", None, 2.0, "lower") for f, v in figures.items()]
        modules.tables.write_results("speed", rows, show=False)
        content = json.loads((tmp_path / "speed.json").read_text())
        return content["rows"], (tmp_path / "speed.md").read_text()

    return enter


def test_each_figure_tells_how_it_was_measured(measure):
    measure("a GPU", ["--steps", "5"], a=1.0, b=1.5, c=1.25)
    rows, page = measure("a GPU", ["/some/where/tokens", "--fast"], b=0.5)
    assert [(row["figure"], row["value"]) for row in rows] == [("a", 1.0), ("b", 0.5), ("c", 1.25)]
    assert rows[1]["command"] == "python benchmarks/speed.py tokens --fast"
    first, second = page.split("`python benchmarks/speed.py ")[1:]
    assert first.startswith("--steps 5` on a GPU, torch ")
    assert [line[:3] for line in first.splitlines()[4:6]] == ["| a", "| c"]
    assert second.startswith("tokens --fast` on a GPU, torch ")
    assert "| b | 0.5 s |  | <= 2 s |" in second


def test_a_figure_of_another_machine_replaces_none(measure):
    for device, value in (("a GPU", 1.0), ("a laptop", 9.0), ("a GPU", 2.0)):
        rows, _ = measure(device, [], a=value)
    assert [(row["device"], row["value"]) for row in rows] == [("a GPU", 2.0), ("a laptop", 9.0)]


def test_older_figures_keep_all_that_their_file_tells(measure, tmp_path):
    row = {"unit": "s", "reference": 3.0, "target": None, "better": "lower", "value": 1.0}
    made = {"command": "run a; run b", "device": "one GPU; another GPU", "torch": "2; 3"}
    content = {**made, "rows": [{**row, "figure": "a"}, {**row, "figure": "b"}]}
    (tmp_path / "speed.json").write_text(json.dumps(content))
    rows, page = measure("a laptop", [], a=9.0)
    assert [row["value"] for row in rows] == [1.0, 1.0, 9.0]
    assert page.startswith("`run a; run b` on one GPU; another GPU, torch 2; 3\n\n| figure ")
    assert "| b | 1 s | 3 |  |\n\n`python benchmarks/speed.py` on a laptop" in page
    rows, _ = measure("another GPU", [], a=2.0)
    assert [row["value"] for row in rows] == [2.0, 1.0, 9.0]


def test_momentum_settles_in_a_quarter_of_a_cut_schedule(modules):
    changes = modules.projects.assignments([*TEXT, "train.seed=5"])
    train = modules.projects.cut("pr1204", changes, 60_000_000, 98_304)["train"]
    assert (train["steps"], train["muon_momentum_steps"], train["seed"]) == (610, 152, 5)


def test_recipes_run_every_stage_of_a_model(modules):
    plan = [*read_yaml(ROOT / "dvc.yaml")["stages"]]
    ours = [stage for stage in modules.recipes.STAGES if stage != "packed"]
    assert ours == plan[plan.index("train") : plan.index("report")]


def test_steps_are_timed_in_the_order_that_they_ran(modules, tiny_model):
    seconds = [0.1, 0.2, 0.3, 0.9, 1.2, 1.5]  # recurrence begins with the fourth of six
    steps = [{"step": i + 1, "seconds": s, "loss": 5.0 - i} for i, s in enumerate(seconds)]
    found = modules.projects.of_steps(steps, tiny_model())
    assert found["first_loss"] == 5.0
    assert found["step_ms_before"] == pytest.approx(100)
    assert found["step_ms_after"] == pytest.approx(300)


def test_figures_of_other_recipes_stay(modules, tmp_path):
    path = tmp_path / "recipes.json"
    for name, loss in (("a", 7.0), ("b", 6.5), ("a", 7.25)):
        modules.recipe_results.Results(path).add_recipe(name, {"first_loss": loss}, f"run {name}")
    found = modules.recipe_results.Results(path).recipes
    assert {name: recipe["figures"] for name, recipe in found.items()} == {
        "a": {"first_loss": 7.25},
        "b": {"first_loss": 6.5},
    }
    assert "| a | 7.2500 |" in path.with_suffix(".md").read_text()


def test_files_of_results_are_brought_together(modules, tmp_path):
    other = modules.recipe_results.Results(tmp_path / "other.json")
    other.add_recipe("a", {"first_loss": 7.0}, "run a")
    read = json.loads(other.path.read_text())
    read["runs"]["recipes"]["a"]["device"] = "another GPU"
    other.path.write_text(json.dumps(read))
    results = modules.recipe_results.Results(tmp_path / "recipes.json")
    results.add_recipe("b", {"first_loss": 6.0}, "run b")
    results.add_file(other.path)
    assert {*modules.recipe_results.Results(results.path).recipes} == {"a", "b"}
    devices = json.loads(results.path.read_text())["device"].split("; ")
    assert len(devices) == 2
    assert "another GPU" in devices
    page = results.path.with_suffix(".md").read_text()
    assert "- a: `run a` on another GPU, torch" in page
    assert "| a | 7.0000 |" in page
    assert "| b | 6.0000 |" in page


def test_a_gpu_is_taken_and_given_back(modules, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    devices = modules.projects.Devices(2)
    with devices.take() as a:
        with devices.take() as b:
            assert [a, b] == ["4", "5"]
        with devices.take() as c:
            assert c == "5"
    with pytest.raises(ParamGolfError, match="--gpus 4, but CUDA_VISIBLE_DEVICES names 3"):
        modules.projects.Devices(4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with modules.projects.Devices(1).take() as first:
        assert first == "0"


@pytest.fixture
def ran(modules, monkeypatch, tmp_path):
    """Stages as they are run: (project, stage, GPU); training writes what its figures are of."""
    calls = []

    def run(processes, stage, place, environment):
        calls.append((place.folder.name, stage, environment["CUDA_VISIBLE_DEVICES"]))
        for folder in ("artifacts/train", "artifacts/metrics"):
            (place.folder / folder).mkdir(parents=True, exist_ok=True)
        if stage == "train":
            time.sleep(0.05)  # or one GPU would do all
            steps = [{"event": "step", "step": i, "seconds": i, "loss": 5.0} for i in (1, 2)]
            log = "\n".join(json.dumps(step) for step in steps)
            (place.folder / "artifacts/train/log.jsonl").write_text(log)
            (place.folder / "artifacts/metrics/train.json").write_text('{"val_bpb": 1.25}')
        if stage == "packed":
            (place.folder / "artifacts/metrics/packed.json").write_text('{"val_bpb": 1.375}')
        return 1.0

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr(modules.projects.Processes, "run", run)
    monkeypatch.setattr(modules.recipes, "WORK", tmp_path)
    monkeypatch.setattr(modules.projects.Project, "take_tokens", lambda project: None)
    return calls


def call(modules, monkeypatch, tmp_path, *arguments: str) -> dict:
    path = tmp_path / "mine.json"
    command = ["recipes.py", *arguments, "--results", str(path), "--gpus", "2", "--set", *TEXT]
    monkeypatch.setattr("sys.argv", command)
    modules.recipes.main()
    return json.loads(path.read_text())["runs"]


def test_recipes_are_spread_over_gpus(modules, monkeypatch, ran, tmp_path):
    names = ["pr1493", "h100x1", "pr1204", "best"]
    runs = call(modules, monkeypatch, tmp_path, "--recipes", *names, "--plain")
    assert {*runs["recipes"]} == {*names}
    assert all(recipe["device"] for recipe in runs["recipes"].values())
    figures = runs["recipes"]["best"]["figures"]
    assert (figures["val_bpb"], figures["val_bpb_packed"], figures["lost"]) == (1.25, 1.375, 0.125)
    assert {gpu for _, _, gpu in ran} == {"2", "3"}
    for name in names:
        mine = [(stage, gpu) for recipe, stage, gpu in ran if recipe == name]
        stages = ["train", "calibrate", "quantize", "package", "packed"]
        assert [stage for stage, _ in mine] == stages
        assert len({gpu for _, gpu in mine}) == 1


def test_no_recipe_is_begun_when_time_is_up(modules, monkeypatch, ran, tmp_path):
    with pytest.raises(SystemExit, match="some recipes"):
        call(modules, monkeypatch, tmp_path, "--recipes", "pr1493", "--seconds", "-1")
    assert ran == []

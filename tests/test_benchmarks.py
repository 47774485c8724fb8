"""The tables of benchmarks/recipes.py: what is run, what is run again, and how it is compared."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from paramgolf.recipes import check

ROOT = Path(__file__).parents[1]
TEXT = ["data.source=files", "data.files=[some.jsonl]", "tokenizer.source=train"]


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    names = ("projects", "recipe_results", "recipes", "techniques")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def test_every_technique_is_a_possible_change_of_the_common_recipe(modules):
    techniques = modules.techniques.TECHNIQUES
    assert len({t.name for t in techniques}) == len(techniques)
    plain = None
    for technique in techniques:
        changes = modules.projects.assignments([*TEXT, *technique.changes_at(49_152)])
        content = modules.projects.cut("h100x1", changes, 20_000_000, 49_152)
        check(content, where=technique.name)
        plain = plain or content
        assert (content == plain) == (technique.name == "common")
        alike = all(content[name] == plain[name] for name in ("model", "train"))
        assert alike == (not technique.trains or technique.name == "common")


def test_a_schedule_in_steps_becomes_one_in_shares(modules):
    changes = modules.projects.assignments([*TEXT, "train.seed=5"])
    content = modules.projects.cut("pr1204", changes, 60_000_000, 98_304)
    train, model = content["train"], content["model"]
    assert (train["steps"], train["budget_seconds"], train["seed"]) == (610, None, 5)
    assert (train["warmdown_unit"], train["warmdown"]) == ("fraction", 0.7)
    assert (model["recurrence_unit"], model["recurrence"][0]["at"]) == ("fraction", 0.6)
    assert train["muon_momentum_steps"] == 152


def test_steps_are_timed_in_the_order_that_they_ran(modules, tiny_model):
    seconds = [0.1, 0.2, 0.3, 0.9, 1.2, 1.5]  # recurrence begins with the fourth of six
    steps = [{"step": i + 1, "seconds": s, "loss": 5.0 - i} for i, s in enumerate(seconds)]
    found = modules.recipes.of_steps(steps, tiny_model())
    assert found["first_loss"] == 5.0
    assert found["step_ms_before"] == pytest.approx(100)
    assert found["step_ms_after"] == pytest.approx(300)


@pytest.fixture
def results(modules, tmp_path):
    results = modules.recipe_results.Results(tmp_path / "recipes.json")
    for seed, common, other in ((1, 2.0, 1.99), (2, 2.1, 2.088)):
        add = results.add_technique
        add({"tokens": "1"}, "common", "", seed, {"val_bpb": common, "val_bpb_packed": common})
        add({"tokens": "1"}, "no XSA", "model.xsa_layers=0", seed, {"val_bpb": other})
    return results


def test_differences_are_between_equal_seeds(modules, results):
    again = modules.recipe_results.Results(results.path)
    rows = again.techniques({"tokens": "1"})
    assert modules.recipe_results.differences(rows, "no XSA") == pytest.approx([-0.01, -0.012])
    assert modules.recipe_results.cells(rows, "no XSA") == [
        "2.0390", "-0.0110 ± 0.0014", "", "", "", "2"
    ]  # fmt: skip
    assert again.techniques({"tokens": "2"}) == {}
    page = results.path.with_suffix(".md").read_text()
    assert "| no XSA | `model.xsa_layers=0` | 2.0390 | -0.0110 ± 0.0014 |" in page


def test_only_close_calls_are_run_with_more_seeds(modules):
    options = argparse.Namespace(seeds=[1, 2], close=0.003)
    rows = {
        "common": {"seeds": {"1": {"val_bpb": 2.0}}},
        "far": {"seeds": {"1": {"val_bpb": 2.1}}},
        "near": {"seeds": {"1": {"val_bpb": 2.001}}},
    }

    def due(name: str, seed: int) -> bool:
        return modules.techniques.is_due(modules.techniques.Technique(name), seed, rows, options)

    assert [due(name, 1) for name in ("common", "far", "near", "new")] == [False] * 3 + [True]
    assert [due(name, 2) for name in ("common", "far", "near", "new")] == [True, False, True, False]


def test_figures_of_other_recipes_stay(modules, tmp_path):
    path = tmp_path / "recipes.json"
    for name, loss in (("a", 7.0), ("b", 6.5), ("a", 7.25)):
        modules.recipe_results.Results(path).add_recipe(name, {"first_loss": loss}, f"run {name}")
    found = modules.recipe_results.Results(path).content["recipes"]
    assert {name: recipe["figures"] for name, recipe in found.items()} == {
        "a": {"first_loss": 7.25},
        "b": {"first_loss": 6.5},
    }
    assert "| a | 7.2500 |" in path.with_suffix(".md").read_text()

"""The sweeps of docs/experiments.md, by DVC's own commands, and what compare makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pipeline_case import Project

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]


def compared(project: Project, *words: str) -> dict:
    return json.loads(project.run("python", "-m", "paramgolf.cli", "compare", "--json", *words))


def ran(project: Project, log: str) -> dict[str, bool]:
    """Tell of the stages of a task's log whether each ran (True) or came out of the cache."""
    lines = project.run("dvc", "queue", "logs", log).splitlines()
    found = {}
    for line in lines:
        words = line.split("'")
        if line.startswith("Running stage"):
            found[words[1]] = True
        elif "is cached - skipping run" in line:
            found[words[1]] = False
    return found


def tasks(project: Project) -> dict[str, str]:
    """Return the state of each task of the queue by name."""
    lines = project.run("dvc", "queue", "status").splitlines()
    rows = [line.split() for line in lines if line[:1].isalnum()]
    return {row[1]: row[-1] for row in rows if row[-1] in ("Success", "Failed", "Queued")}


def test_seeds_are_one_group(seeded):
    """Two seeds of a queue, and the committed run: three seeds of one system."""
    result = compared(seeded, "*-seed", "HEAD")
    (group,) = result["groups"]
    assert sorted(group["seeds"]) == [1, 2, 1337]
    assert group["metrics"]["eval_ttt.val_bpb"]["n"] == 3
    assert group["metrics"]["eval_ttt.val_bpb"]["deviation"] > 0
    assert group["flags"] == []
    assert set(tasks(seeded).values()) == {"Success"}


def test_variants_of_the_quantiser_share_one_training(sibling):
    sibling.run("dvc", "exp", "run", "--queue", "-S", "quantize.matrix_bits=5,7", "package")
    sibling.run("dvc", "exp", "run", "--run-all")
    names = tasks(sibling)
    assert len(names) == 2
    for name in names:
        stages = ran(sibling, name)
        assert stages["quantize"]
        assert stages["package"]
        assert not stages.get("train", False)
    left_out = compared(sibling, *names, "HEAD")["left_out"]  # their scores are those of HEAD
    assert left_out == dict.fromkeys(
        names, "its eval_ttt was made with another artifacts/package/model.bin: `dvc repro`"
    )
    result = compared(sibling, *names, "HEAD", "--score", "train.val_bpb")
    labels = {group["label"]: group for group in result["groups"]}
    sizes = [
        labels[f"quantize.matrix_bits={bits}"]["metrics"]["package.bytes_total"]["mean"]
        for bits in (5, 6, 7)
    ]
    assert sizes == sorted(sizes)
    assert len({tuple(group["scores"]) for group in result["groups"]}) == 1


def test_recipes_are_queued_as_params_yaml_stands(sibling):
    """Two recipes of the user's own; what the queue runs does not change with params.yaml."""
    recipes = sibling.folder / "recipes"
    sibling.run("cp", "params.yaml", str(recipes / "tiny.yaml"))
    (recipes / "wider.yaml").write_text("# a wider MLP\nfrom: tiny\nmodel:\n  mlp_hidden: 96\n")
    sibling.commit("recipes")
    for recipe in ("tiny", "wider"):
        sibling.run("python", "-m", "paramgolf.cli", "use", recipe, "train.steps=6")
        sibling.run("dvc", "exp", "run", "--queue", "--name", recipe, "train")
    sibling.run("git", "checkout", "-q", "params.yaml")
    sibling.run("dvc", "exp", "run", "--run-all")
    result = compared(sibling, "tiny", "wider", "--score", "train.val_bpb")
    parameters = {
        group["label"]: group["metrics"]["train.parameters"]["mean"] for group in result["groups"]
    }
    assert parameters["model.mlp_hidden=64"] < parameters["model.mlp_hidden=96"]


def test_a_failed_task_is_no_experiment(sibling):
    """`dvc exp show` gives it the metrics of another run; compare leaves it out."""
    words = ["dvc", "exp", "run", "--queue", "--name"]
    sibling.run(*words, "broken", "-S", "model.heads=3")
    sibling.run(*words, "stretched", "-S", "eval_sliding.stride=64", "eval_sliding")
    sibling.run("dvc", "exp", "run", "--run-all", code=None)
    assert tasks(sibling) == {"broken": "Failed", "stretched": "Success"}
    log = sibling.run("dvc", "queue", "logs", "broken")
    assert "`model.heads" in log
    assert "Traceback" not in log
    result = compared(sibling, "--score", "eval_sliding.val_bpb")
    names = [name for group in result["groups"] for name in group["experiments"]]
    assert "stretched" in names
    assert "broken" not in names


def test_the_documented_commands_are_those_tested():
    text = (Path(__file__).parents[2] / "docs/experiments.md").read_text()
    for command in (
        "dvc exp run --queue -S 'train.seed=range(1,4)'",
        "dvc exp run --queue -S quantize.matrix_bits=5,7",
        "dvc exp run --run-all",
    ):
        assert command in text

"""Plans that leave out each part of a recipe: which parts there are, and which cannot go."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from lab_case import ROOT, SMALL, plan_of

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.ablate import ablation
from paramgolf.experiments.lab.plan import contents, read_plan
from paramgolf.recipes import RECIPES, flatten


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's recipes, and a folder to add some."""
    monkeypatch.chdir(tmp_path)
    for path in (ROOT / RECIPES).glob("*.yaml"):
        (tmp_path / RECIPES).mkdir(exist_ok=True)
        (tmp_path / RECIPES / path.name).write_text(path.read_text())
    return tmp_path / RECIPES


def write(folder: Path, name: str, **sections: object) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"from": "sample", **sections}))


def test_each_part_is_left_out_with_all_others_in_place(folder):
    write(
        folder,
        "mine",
        model={"skips": "none", "q_gain": 3.0},
        train={"min_lr": 0.1},
        data={"validation_documents": 7},
        runtime={"workers": 3},
    )
    found = ablation(plan_of(), "mine")
    assert found.impossible == {}
    made = contents(found.plan)
    assert {*made} == {
        "mine",
        "without model.skips",
        "without model.q_gain",
        "without train.min_lr",
    }
    whole = flatten(made["mine"])
    for name, content in made.items():
        other = {key: value for key, value in flatten(content).items() if value != whole[key]}
        assert name == "mine" or [*other] == [name.removeprefix("without ")]


def test_what_the_plan_sets_is_no_part(folder):
    curriculum = [{"at": 0.5, "sequence_length": 128, "batch_tokens": 512}]
    train = {"reserve_seconds": 9.0, "batch_tokens": 1024, "min_lr": 0.1, "seed": 3}
    write(folder, "mine", train=train | {"matrix_lr": 0.5, "curriculum": curriculum})
    found = ablation(plan_of(common=[*SMALL, "train.min_lr=0.2"]), "mine")
    # the curriculum is the recipe's, which the plan only scales
    names = [variant.name for variant in found.plan.variants]
    assert {*names} == {"mine", "without train.matrix_lr", "without train.curriculum"}
    write(folder, "set", train={"min_lr": 0.1})
    with pytest.raises(ParamGolfError, match="recipe `set` has no part"):
        ablation(plan_of(common=["train.min_lr=0.2"]), "set")


def test_parameters_that_only_work_together_are_one_part(folder):
    write(
        folder,
        "mine",
        quantize={"balance": 0.8, "low_rank_matrices": 2, "trellis": True, "fit_codec": "rans"},
        calibrate={"sensitivity_sequences": 8},
        package={"codec": "rans"},
    )
    variants = {v.name: v for v in ablation(plan_of(), "mine").plan.variants}
    assert variants["without calibrate.sensitivity_sequences"].changes == (
        "calibrate.sensitivity_sequences=0",
        "quantize.balance=0.0",
    )
    assert len(variants["without quantize.trellis"].changes) == 3
    assert {v.goal for n, v in variants.items() if n != "mine"} == {"packed"}  # where they show


def test_heads_are_one_part_and_so_is_a_mixture(folder):
    mixture = {"kind": "blend", "contexts": [1, 2], "weight": 0.001}
    write(folder, "mine", model={"heads": 8, "kv_heads": 8}, eval_ttt={"mixture": mixture})
    found = ablation(plan_of(common=[]), "mine").plan.variants[1:]
    keys = [{change.partition("=")[0] for change in one.changes} for one in found]
    assert {"model.heads", "model.kv_heads"} in keys
    assert {f"eval_ttt.mixture.{key}" for key in mixture} in keys
    assert len(found) == 2


def test_what_the_plan_sets_stays_in_a_part_with_others(folder):
    write(folder, "mine", quantize={"balance": 0.5}, calibrate={"sensitivity_sequences": 8})
    plan = plan_of(common=["calibrate.sensitivity_sequences=4"])
    (one,) = ablation(plan, "mine").plan.variants[1:]
    assert one.changes == ("quantize.balance=0.0",)


def test_parts_that_need_each_other_are_left_out_once(folder):
    model = {"width": 96, "heads": 12, "rope_dims": 4}
    write(folder, "fours", model=model | {"kv_heads": 4}, train={"muon_kv_heads": 4})
    threes = {"model": {"kv_heads": 3}, "train": {"muon_kv_heads": 3}}
    write(folder, "threes", **{"from": "fours"}, **threes)
    (one,) = ablation(plan_of(common=[]), "threes").plan.variants[1:]
    assert {*one.changes} == {"model.kv_heads=4", "train.muon_kv_heads=4"}


def test_what_cannot_be_left_out_is_said(folder):
    write(folder, "mine", model={"width": 256, "q_gain": 2.0})
    heads = ("model.heads=64", "model.kv_heads=64", "model.rope_dims=4")  # too many for width 128
    common = [*(one for one in SMALL if "width" not in one), *heads]
    found = ablation(plan_of(common=common), "mine")
    assert [variant.name for variant in found.plan.variants] == ["mine", "without model.q_gain"]
    assert "model.rope_dims" in found.impossible["model.width"]


def test_a_recipe_without_parts_is_refused(folder):
    write(folder, "mine")
    with pytest.raises(ParamGolfError, match="recipe `mine` has no part"):
        ablation(plan_of(), "mine")
    with pytest.raises(ParamGolfError, match="is from no other"):
        ablation(plan_of(), "base")
    with pytest.raises(ParamGolfError, match="there is no recipe `pr0`"):
        ablation(plan_of(), "pr0")


def test_the_printed_plan_is_a_plan(monkeypatch, tmp_path, command):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "plan.yaml"
    path.write_text(command("lab", "benchmarks/plans/unit.yaml", "--ablate", "best"))
    found, unit = read_plan(path), read_plan(ROOT / "benchmarks/plans/unit.yaml")
    assert (found.name, found.recipe, found.seeds) == ("ablate-best", "best", unit.seeds)
    assert found.variants[0].name == "best"
    assert len(found.variants) > 2

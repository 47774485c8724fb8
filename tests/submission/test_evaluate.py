"""The command that scores a submission: it must ask for what the pipeline's evaluator did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from package_case import frozen

from paramgolf.errors import ParamGolfError
from paramgolf.packing.entry import SCORERS, parser, section
from paramgolf.packing.script import PackedScript
from paramgolf.recipes import build, check, names
from paramgolf.schema import parse
from paramgolf.submission.build import slug
from paramgolf.submission.evaluate import COMMANDS, command, compare_scores, effective, evaluator_of

RECIPES = Path(__file__).parents[2] / "recipes"


def script_of(params):
    """Return the script that package makes of a recipe, without its modules."""
    return PackedScript(json.loads(json.dumps(frozen(check(params, where="test")))), {})


@pytest.mark.parametrize("stage", COMMANDS)
@pytest.mark.parametrize("recipe", [*names(RECIPES), "base"])
def test_the_options_give_the_recipes_evaluation(recipe, stage):
    """Also of a program that was packed with another stride."""
    params = build(recipe, folder=RECIPES)
    script = script_of(build(recipe, [(f"{stage}.stride", 16)], folder=RECIPES))
    words = command(params, stage, script)
    kind, _ = SCORERS[words[0]]
    found = section(kind, script.params[words[0]], parser(script.params).parse_args(words), stage)
    assert found == parse(kind, params[stage], stage)


@pytest.mark.parametrize("stage", COMMANDS)
def test_what_ran_is_read_back_from_the_shipped_program(stage):
    changes = [(f"{stage}.stride", 32), ("train.steps", 7), ("model.softcap", 20.0)]
    params = build("sample", changes, folder=RECIPES)
    shipped = script_of(params)
    params["train"]["steps"] = 8  # whatever params.yaml says by now
    found = effective(params, stage, shipped)
    assert (found["train"]["steps"], found["model"]["softcap"]) == (7, 20.0)
    assert found[stage] == params[stage]
    assert found.keys() == {"model", "train", stage}


def test_defaults_are_not_repeated():
    params = build("base", [("eval_sliding.stride", 32)], folder=RECIPES)
    assert command(params, "eval_sliding", script_of(params)) == ["eval"]
    packed_before = script_of(build("base", folder=RECIPES))
    assert command(params, "eval_sliding", packed_before) == ["eval", "--stride=32"]


def test_the_score_handed_in_is_the_adapted_one_unless_nothing_adapts():
    assert evaluator_of(build("pr1493", folder=RECIPES)) == "eval_ttt"
    params = build("pr1493", [("eval_ttt.mode", "none")], folder=RECIPES)
    assert evaluator_of(params) == "eval_sliding"


@pytest.mark.parametrize(
    ("key", "value", "agrees"),
    [
        ("val_bpb", 1.0805, True),
        ("val_bpb", 1.0785, False),
        ("val_bpb", float("nan"), False),
        ("tokens_scored", 999, False),
        ("bytes_scored", 4001, False),
    ],
)
def test_what_is_found_must_be_what_was_recorded(key, value, agrees):
    recorded = {"val_bpb": 1.08, "tokens_scored": 1000, "bytes_scored": 4000}
    stage = {f"eval_ttt.{name}": figure for name, figure in recorded.items()}
    if agrees:
        compare_scores({**recorded, key: value}, stage, "eval_ttt")
        return
    with pytest.raises(ParamGolfError, match=rf"where: eval_ttt\.{key}"):
        compare_scores({**recorded, key: value}, stage, "eval_ttt")


@pytest.mark.parametrize(
    ("name", "folder"), [("Wide MLP, x5!", "Wide_MLP_x5"), ("../..", "submission"), ("a_b", "a_b")]
)
def test_a_title_becomes_a_folder(name, folder):
    assert slug(name) == folder

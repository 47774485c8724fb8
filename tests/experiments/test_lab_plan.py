"""Plans of the laboratory: what they take, what they refuse, and the parameters they stand for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from lab_case import PLAN, ROOT, plan_of

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.plan import contents, read_plan
from paramgolf.experiments.lab.screening import MOST_FACTORS
from paramgolf.recipes import build

pytestmark = pytest.mark.usefixtures("in_the_project")
TEXT = {"files": ["train.jsonl"], "validation_files": ["val.jsonl"]}
PLANS = sorted((ROOT / "benchmarks/plans").glob("*.yaml"))
NO_VARIANTS: dict = {"variants": []}
FACTORS = [
    {"name": "one", "changes": ["train.min_lr=0.5", "train.warmdown=0.9"]},
    {"name": "other", "changes": ["model.skips=none"]},
]


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_plans_of_the_project_are_sound(path):
    found = read_plan(path)
    assert found.name == path.stem
    assert {*contents(found)} == {variant.name for variant in found.variants}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seconds": 3.0}, "`seconds` or `tokens` must be given, and not both"),
        ({"tokens": None}, "`seconds` or `tokens` must be given, and not both"),
        ({"tokens": 0}, "`tokens` must be at least 1"),
        ({"seeds": []}, "`seeds` must name at least one"),
        ({"seeds": [-1]}, "`seeds.0` must lie in 0..4294967295, found -1"),
        ({"gpus": 0}, "`gpus` must lie in 1..1024, found 0"),
        ({"goal": "done"}, "`goal` must be one of trained, packed, scored, adapted, found 'done'"),
        ({"variants": []}, "`variants` or `factors` must be given, and not both"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "found twice: a"),
        ({"variants": [{"name": "a", "chages": []}]}, "did you mean `variants.0.changes`?"),
        ({"variants": [{"name": "a|b"}]}, "`variants.0.name` must be a name of at most 80"),
        ({"name": "../x"}, "`name` must be letters, digits, - and _"),
        ({"text": {}}, "`text.files` or `tokens` must be given, and not both"),
        ({"text": TEXT | {"tokens": "x"}}, "`text.files` or `tokens` must be given, and not both"),
        ({"factors": FACTORS}, "`variants` or `factors` must be given, and not both"),
        (
            {"factors": [*FACTORS, FACTORS[0]]} | NO_VARIANTS,
            "`factors` must have different names, found twice",
        ),
        (
            {"factors": [*FACTORS, {"name": "last", "changes": ["train.warmdown=0.1"]}]}
            | NO_VARIANTS,
            "must each have keys of its own, found train.warmdown in `one` and `last`",
        ),
        (
            {"factors": [{"name": f"f{i}", "changes": []} for i in range(MOST_FACTORS + 1)]}
            | NO_VARIANTS,
            "`factors` must be at most 31, found 32",
        ),
        ({"runs": 8}, "`runs` is of a plan with `factors`"),
        ({"factors": FACTORS, "runs": 33} | NO_VARIANTS, "`runs` must lie in 1..32, found 33"),
        ({"factors": [{"name": "a"}]} | NO_VARIANTS, "`factors.0.changes` is missing"),
        ({"factors": [FACTORS[0] | {"recipe": "best"}]} | NO_VARIANTS, "`factors.0.recipe` is not"),
    ],
)
def test_a_fault_of_a_plan_is_named(changes, message, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps(PLAN | {"common": [], "text": TEXT} | changes))  # which is YAML
    with pytest.raises(ParamGolfError) as caught:
        read_plan(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(("key", "field"), [("train.seed", "seeds"), ("runtime.processes", "gpus")])
def test_a_change_of_what_the_plan_says_itself_is_refused(key, field):
    with pytest.raises(ParamGolfError, match=f"`{key}` is no change: `{field}` of the plan"):
        contents(plan_of(), [f"{key}=1"])


def test_variants_at_fault_come_in_one_message():
    variants = [
        {"name": "one", "changes": ["model.layres=3"]},
        {"name": "two", "recipe": "pr0"},
        {"name": "three", "changes": ["fidelity=published"]},
        {"name": "four", "recipe": "pr0"},
    ]
    with pytest.raises(ParamGolfError) as caught:
        contents(plan_of(variants=variants))
    message = str(caught.value)
    assert "variant `one`: a fault in the parameters\n  - `model.layres` is not" in message
    assert "variant `two`, `four`: there is no recipe `pr0`" in message
    assert "variant `three`: `fidelity` is `published`" in message


def test_a_variant_has_its_recipe_the_budget_and_its_changes_in_this_order():
    variants = [
        {"name": "base"},
        {"name": "published", "recipe": "pr2135", "changes": ["fidelity=published"]},
        {"name": "own", "changes": ["train.budget_seconds=60", "train.min_lr=0.25"]},
    ]
    budget = {"tokens": None, "seconds": 30, "batch_tokens": 196_608, "common": []}
    found = contents(
        plan_of(text=TEXT, variants=variants, recipe="best", **budget),
        ["train.min_lr=0.5"],
    )
    seconds = {name: content["train"]["budget_seconds"] for name, content in found.items()}
    assert seconds == {"base": 30.0, "published": 30.0, "own": 60.0}
    for content in found.values():
        assert content["train"]["steps"] is None
        assert content["train"]["reserve_seconds"] == 0.0
        assert content["train"]["min_lr"] == 0.5
        assert content["data"]["files"] == ["train.jsonl"]
        assert content["tokenizer"]["source"] == "train"
    published = build("pr2135", [("fidelity", "published")])
    assert found["published"]["quantize"] == published["quantize"]
    assert found["published"]["model"] == published["model"] != found["base"]["model"]
    # batches of later phases shrink with the first
    assert found["base"]["train"]["curriculum"][0]["batch_tokens"] == 196_608
    assert found["base"]["train"]["batch_tokens"] == 196_608


def test_a_schedule_in_steps_becomes_one_in_shares():
    variants = [{"name": "pr1204", "recipe": "pr1204"}]
    budget = {"tokens": 60_000_000, "batch_tokens": 98_304, "common": []}
    content = contents(plan_of(variants=variants, **budget))["pr1204"]
    train, model = content["train"], content["model"]
    assert (train["steps"], train["budget_seconds"]) == (610, None)
    assert (train["warmdown_unit"], train["warmdown"]) == ("fraction", 0.7)
    assert (model["recurrence_unit"], model["recurrence"][0]["at"]) == ("fraction", 0.6)


def test_each_gpu_of_a_run_gets_a_part_of_a_step():
    """A row of packed documents is a micro-batch: two rows would leave two of four GPUs idle."""
    variants = [{"name": "pr2135", "recipe": "pr2135"}]
    budget = {"tokens": None, "seconds": 120, "batch_tokens": 196_608, "common": [], "gpus": 4}
    content = contents(plan_of(variants=variants, **budget))["pr2135"]
    assert content["train"]["micro_batch_tokens"] == 49_152
    assert content["runtime"]["processes"] == 4


def test_a_file_that_is_no_plan_is_refused(tmp_path):
    with pytest.raises(ParamGolfError, match="there is no file"):
        read_plan(Path("nowhere.yaml"))
    path = tmp_path / "plan.yaml"
    path.write_text("- a list")
    with pytest.raises(ParamGolfError, match="not a YAML mapping"):
        read_plan(path)


def test_a_plan_takes_from_another_what_it_does_not_say(tmp_path):
    (tmp_path / "below.yaml").write_text(yaml.safe_dump(PLAN | {"common": [], "text": TEXT}))
    (tmp_path / "above.yaml").write_text("from: below\nname: above\nseeds: [9]\n")
    found = read_plan(tmp_path / "above.yaml")
    assert (found.name, found.seeds, found.tokens) == ("above", (9,), PLAN["tokens"])
    (tmp_path / "above.yaml").write_text("from: below\nseeds: [9]\n")
    with pytest.raises(ParamGolfError, match="`name` is missing"):
        read_plan(tmp_path / "above.yaml")
    (tmp_path / "below.yaml").write_text("from: above\n")
    with pytest.raises(ParamGolfError, match="plans inherit in a circle"):
        read_plan(tmp_path / "above.yaml")


@pytest.mark.parametrize("other", ["a/b", "../x/y", "[a]", "3", "''", "a.yaml"])
def test_a_plan_is_from_one_of_the_same_folder(tmp_path, other):
    path = tmp_path / "plan.yaml"
    path.write_text(f"from: {other}\nname: plan\n")
    with pytest.raises(ParamGolfError, match="`from` must be") as caught:
        read_plan(path)
    assert "name a plan of the same folder" in str(caught.value)


def test_plans_beside_each_other_have_names_of_their_own(tmp_path, command):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(PLAN | {"text": TEXT}))
    words = "lab", str(tmp_path / "one.yaml"), "--beside", str(tmp_path / "two.yaml"), "--show"
    assert "plans side by side have names of their own" in command(*words, code=2)


def test_a_budget_of_tokens_counts_the_batches_of_each_variant():
    growing = "train.curriculum=[{at: 0.25, batch_tokens: 8192, sequence_length: 256}]"
    variants = [
        {"name": "plain"},
        {"name": "large", "changes": ["train.batch_tokens=8192"]},
        {"name": "growing", "changes": [growing]},
        {"name": "given", "changes": [growing, "train.steps=7"]},
    ]
    found = contents(plan_of(variants=variants, tokens=81_920, common=[]))
    steps = {name: content["train"]["steps"] for name, content in found.items()}
    assert steps == {"plain": 160, "large": 10, "growing": 13, "given": 7}

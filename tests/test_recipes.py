"""Recipes: every one is whole and valid, and written with base's comments, stable under DVC."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import modify_yaml
from ruamel.yaml import YAML

from paramgolf.commented_yaml import dump_sections, key_comments
from paramgolf.errors import ParamGolfError
from paramgolf.params import read_yaml
from paramgolf.recipes import (
    build,
    check,
    compose,
    describe,
    flatten,
    merge,
    names,
    read_assignment,
)

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
BASE = compose("base", RECIPES)


@pytest.mark.parametrize("name", ["base", *names(RECIPES)])
def test_a_recipe_holds_every_key_of_base_and_is_valid(name):
    content = compose(name, RECIPES)
    assert flatten(content).keys() == flatten(BASE).keys()
    check(content, where=name)


def test_params_yaml_as_committed_is_the_sample_recipe():
    content = read_yaml(ROOT / "params.yaml")
    assert list(flatten(content)) == list(flatten(BASE))
    sample = check(compose("sample", RECIPES), where="sample")
    assert check(content, where="params.yaml") == sample, "another recipe? `paramgolf use sample`"


@pytest.mark.parametrize("name", names(RECIPES))
def test_a_recipe_says_what_it_is(name):
    assert (RECIPES / f"{name}.yaml").read_text().startswith("# ")
    assert len(describe(name, RECIPES)) > 10


def test_every_key_of_base_that_is_no_plain_word_has_a_comment():
    comments = key_comments((RECIPES / "base.yaml").read_text())
    bare = [key for key in flatten(BASE) if not comments[tuple(key.split("."))]]
    assert len(bare) < len(flatten(BASE)) / 2


def test_records_are_scores_of_systems():
    records = read_yaml(RECIPES / "records.yaml")
    for name, record in records.items():
        assert name == f"pr{record['pull_request']}"
        assert record["evaluation"] in ("plain", "sliding", "adapted")
        assert record.get("artifact_bytes", 0) <= 16_000_000
        assert record["audited"] in (True, False, None)
        assert record["source"] in ("log", "readme", "leaderboard")
        assert re.fullmatch(r"2026-0[345]-\d\d", record.get("date", "2026-03-18"))
        assert ("seeds" in record) != ("mean" in record)
    published = {"pr1204": 1.1063, "pr1296": 1.0897, "pr1392": 1.1020, "pr1493": 1.0810}
    for name, mean in (published | {"pr1855": 1.0611, "pr2135": 1.0565}).items():
        assert statistics.fmean(records[name]["seeds"].values()) == pytest.approx(mean, abs=6e-5)


def test_inheritance_goes_through_every_parent(tmp_path):
    (tmp_path / "base.yaml").write_text("a: {x: 1, y: [1, 2]}\nb: 1")
    (tmp_path / "one.yaml").write_text("from: base\na: {y: [3]}")
    (tmp_path / "two.yaml").write_text("from: one\nb: 2")
    assert compose("two", tmp_path) == {"a": {"x": 1, "y": [3]}, "b": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("from: one", "recipes inherit in a circle\n  where: {}\n  found: one -> one"),
        ("from: missing", "there is no recipe `missing`"),
        ("from: [base]", "`from` is no name\n  where: {}/one.yaml\n  found: ['base']"),
    ],
)
def test_a_bad_parent_is_named(content, message, tmp_path):
    (tmp_path / "one.yaml").write_text(content)
    with pytest.raises(ParamGolfError) as caught:
        compose("one", tmp_path)
    assert message.format(tmp_path) in str(caught.value)


def test_an_unknown_recipe_names_those_that_exist():
    with pytest.raises(ParamGolfError, match=r"choose one of: .*sample"):
        compose("pr9999", RECIPES)


def test_merge_leaves_its_arguments_alone():
    below, above = {"a": {"x": 1}}, {"a": {"x": 2}}
    assert merge(below, above) == {"a": {"x": 2}}
    assert below == {"a": {"x": 1}}


@pytest.mark.parametrize(
    ("text", "assignment"),
    [
        ("train.seed=3", ("train.seed", 3)),
        ("a.b=null", ("a.b", None)),
        ("a.b=[1, x]", ("a.b", [1, "x"])),
        ("a.b=c=d", ("a.b", "c=d")),
    ],
)
def test_an_assignment_is_yaml(text, assignment):
    assert read_assignment(text) == assignment


@pytest.mark.parametrize("text", ["train.seed", "=3", "a=[1"])
def test_a_bad_assignment_is_named(text):
    with pytest.raises(ParamGolfError, match=r"is not a change of a parameter|not a YAML value"):
        read_assignment(text)


def test_build_puts_values_in_and_keeps_the_order_of_base():
    content = build("sample", [("train.adam_eps", "1e-5"), ("train.budget_seconds", 60)], RECIPES)
    assert content["train"]["adam_eps"] == 1e-5
    assert type(content["train"]["budget_seconds"]) is float
    assert list(flatten(content)) == list(flatten(BASE))


def test_build_reports_unknown_keys_and_bad_values_together():
    changes = [("train.sede", 1), ("data.hub", 2), ("zzz", 1), ("model.kv_heads", 3)]
    with pytest.raises(ParamGolfError) as caught:
        build("sample", changes, RECIPES)
    message = str(caught.value)
    assert message.startswith("4 faults in the parameters")
    assert "`train.sede` is not a parameter; did you mean `train.seed`?" in message
    assert "`data.hub` is not a parameter; it is a section, name one of its keys" in message
    assert "`zzz` is not a parameter\n" in message
    assert "`model.kv_heads` must divide `heads`: 3 does not divide 4" in message


def written(name: str) -> str:
    """Return what `paramgolf use NAME` writes."""
    comments = key_comments((RECIPES / "base.yaml").read_text())
    return dump_sections(build(name, folder=RECIPES), comments, "Header.")


def test_every_comment_of_base_is_written_above_its_key():
    comments = key_comments((RECIPES / "base.yaml").read_text())
    again = key_comments(written("sample"))
    assert {key: text for key, text in again.items() if key in comments} == comments
    assert sum(map(len, comments.values())) > 60


@pytest.mark.parametrize("name", names(RECIPES))
def test_what_is_written_reads_back_with_both_parsers(name):
    text, content = written(name), build(name, folder=RECIPES)
    assert YAML(typ="safe", pure=True).load(text) == content
    assert check(yaml.safe_load(text), where=name) == check(content, where=name)


def test_dvc_changes_one_line(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(written("sample"))
    with modify_yaml(str(path)) as content:
        content["train"]["matrix_lr"] = 1e-5
    before, after = written("sample").splitlines(), path.read_text().splitlines()
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert changed == ["  matrix_lr: 1e-05"]


def test_comments_are_read_by_path_and_blank_lines_part_them():
    text = "# lost\n\n# of a\na:\n  # of b\n  # more\n  b: 1\n  c:\n    # of d\n    d: 2\n"
    text += "# of e\ne: 3\n"
    assert {key: lines for key, lines in key_comments(text).items() if lines} == {
        ("a",): ["of a"],
        ("a", "b"): ["of b", "more"],
        ("a", "c", "d"): ["of d"],
        ("e",): ["of e"],
    }

"""The contest's frontier: which records stand on it, and by what p."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats

from paramgolf.experiments.frontier import frontier
from paramgolf.params import read_yaml

ROOT = Path(__file__).parents[2]
SEEDS = {"one": {1: 1.10, 2: 1.12, 3: 1.11}, "two": {1: 1.09, 2: 1.11, 3: 1.10}}
RECORDS = {
    "two": {"pull_request": 2, "audited": True, "seeds": SEEDS["two"]},
    "one": {"pull_request": 1, "audited": None, "seeds": SEEDS["one"]},
    "worse": {"pull_request": 3, "audited": True, "mean": 1.2},
    "claim": {"pull_request": 4, "audited": False, "mean": 1.05},
    "mean": {
        "pull_request": 5,
        "audited": True,
        "mean": 1.06,
        "published_p": {"against": "two", "p": 0.04},
    },
}


def test_each_step_is_better_than_all_before_it():
    one, two, mean = frontier(RECORDS)
    assert (one.name, one.before, one.p) == ("one", None, None)
    test = stats.ttest_ind(
        [*SEEDS["two"].values()], [*SEEDS["one"].values()], equal_var=False, alternative="less"
    )
    assert (two.name, two.before, two.p_from) == ("two", "one", "computed")
    assert two.p == pytest.approx(test.pvalue)
    assert two.improvement == pytest.approx(0.01)
    assert (mean.name, mean.p, mean.p_from) == ("mean", 0.04, "published")


def test_what_nobody_audited_is_left_out_unless_asked_for():
    steps = frontier(RECORDS, audited=False)
    assert [step.name for step in steps] == ["one", "two", "claim"]
    assert steps[-1].p is steps[-1].p_from is None


def test_a_published_p_counts_for_the_pair_that_it_was_published_for(monkeypatch):
    monkeypatch.setitem(RECORDS["mean"]["published_p"], "against", "one")
    assert frontier(RECORDS)[-1].p is None


def test_the_registry_ends_with_the_best_audited_record(monkeypatch, command):
    monkeypatch.chdir(ROOT)
    steps = frontier(read_yaml("recipes/records.yaml"))
    assert [step.name for step in steps][-2:] == ["pr2014", "pr2135"]
    assert steps[-1].p == 0.014
    shown = command("recipes", "--frontier")
    for step in steps:
        assert step.name in shown
    assert "pr2158" not in shown

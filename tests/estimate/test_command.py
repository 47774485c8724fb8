"""`paramgolf estimate`: the table, JSON, and its messages."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from paramgolf.model.shapes import shapes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, command: Callable[..., str]) -> Callable[..., str]:
    """Run `paramgolf estimate` in the project's folder; return what it prints."""
    monkeypatch.chdir(ROOT)
    return functools.partial(command, "estimate")


def test_json_holds_the_whole_estimate(run, sample):
    result = json.loads(run("sample", "train.steps=40", "--gpu", "cpu", "--json"))
    assert result["recipe"] == "sample"
    assert result["changes"] == ["train.steps=40"]
    assert (result["device"], result["devices"]) == ("cpu", 1)
    artifact = result["artifact"]
    assert artifact["bytes_total"] == artifact["bytes_model"] + artifact["bytes_code"]
    assert artifact["fits"] == "yes"
    assert result["run"]["steps"] == 40
    assert result["run"]["tokens"] == 40 * 4096
    assert [phase["passes"] for phase in result["flops_per_token"]] == [6, 8]
    assert result["parameters"].keys() == {*shapes(sample.model, 1024), "total"}


def test_each_phase_is_counted_at_its_own_sequence_length(run):
    apart, alike = (
        json.loads(run("best", *changes, "--json"))["flops_per_token"]
        for changes in ((), ("train.sequence_length=2048", "train.curriculum=[]"))
    )
    assert apart[0]["training"] < alike[0]["training"]
    assert apart[1]["training"] == alike[1]["training"]
    # pr1204's recurrence begins at a step, long before longer sequences would
    longer = "train.curriculum=[{at: 0.9, batch_tokens: 786432, sequence_length: 4096}]"
    plain, found = (
        json.loads(run("pr1204", *words, "--json"))["flops_per_token"] for words in ((), (longer,))
    )
    assert found == plain


@pytest.mark.parametrize(
    ("words", "share"),
    [
        (("pr1493", "--gpus", "8"), "38%"),
        (("pr1493", "train.precision=fp8_mlp", "--gpus", "8"), "41%"),
        (("sample", "--gpu", "cpu"), "70%"),
        (("sample", "--gpus", "8"), "0.05%"),  # steps of 10 ms, the least that one takes
    ],
)
def test_the_share_of_the_peak_is_that_of_the_steps(words, share, run):
    assert f"a second at {share} of the peak" in run(*words)


def test_a_price_gives_dollars(run):
    result = json.loads(run("pr1493", "--gpus", "8", "--price", "3", "--json"))
    seconds = result["run"]["train_seconds"]
    assert result["dollars"]["training"] == pytest.approx(8 * seconds / 3600 * 3)
    assert result["dollars"]["limits"] == pytest.approx(8 * 1800 / 3600 * 3)


@pytest.mark.parametrize(("clip", "fits"), [("12.85", "unsure"), ("14.5", "yes"), ("11.5", "no")])
def test_an_estimate_within_its_tolerance_of_the_limit_is_unsure(clip, fits, run):
    result = json.loads(run("base", f"quantize.mlp_clip={clip}", "--json"))
    assert result["artifact"]["fits"] == fits


def test_the_table_names_the_changes_and_what_does_not_fit(run):
    text = run("base", "train.micro_batch_tokens=786432", "--gpu", "H200", "--gpus", "1")
    assert text.startswith("base train.micro_batch_tokens=786432 on 1 H200\n")
    assert "35,944,536" in text
    assert "does NOT fit in 140" in " ".join(text.split())

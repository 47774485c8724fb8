"""What a plan would cost and could tell, before it runs."""

from __future__ import annotations

import json

import pytest
from lab_case import FakeProcesses, plan_of, session_of, work, write_plan

from paramgolf.experiments.lab.cost import SECONDS
from paramgolf.experiments.lab.stages import StageError
from paramgolf.experiments.paired import smallest_effect


def test_a_forecast_prices_what_is_left(tokens, tmp_path):
    plan = plan_of(tokens, tokens=None, seconds=100, seeds=[1, 2, 3, 4])
    processes = FakeProcesses()
    first = session_of(plan, tmp_path, processes).forecast()
    assert (first.cost.runs, first.cost.trainings) == (8, 8)
    assert first.cost.gpu_seconds == pytest.approx(8 * (100 + SECONDS["train"]))
    assert first.cost.dollars(3.6) == pytest.approx(first.cost.gpu_seconds / 1000)
    assert (first.cost.measured, first.power.freedom) == (False, 0)
    work(plan_of(tokens, tokens=None, seconds=100, seeds=[1, 2]), tmp_path, processes)
    then = session_of(plan, tmp_path, processes, gpus=2).forecast()
    assert (then.cost.runs, then.cost.measured) == (4, True)
    assert then.cost.gpu_seconds == pytest.approx(4 * (100 + 2))  # 3 s, of which 1 s trained
    assert then.cost.clock_seconds == pytest.approx(2 * (100 + 2))
    # the deviation is that of the runs before, the seeds are those of the plan
    assert (then.power.freedom, then.power.seeds) == (2, 4)
    assert then.power.smallest == smallest_effect(then.power.deviation, 4)


def test_a_forecast_counts_the_failures_that_are_run_again(tokens, tmp_path):
    def before(stage, params):
        if params["model"]["skips"] == "none":
            raise StageError(stage, "out of luck", killed=params["train"]["seed"] == 2)

    work(plan_of(tokens), tmp_path, FakeProcesses(before))
    written = (tmp_path / "results.json").read_bytes()
    for retry, runs in ((False, 1), (True, 2)):
        session = session_of(plan_of(tokens), tmp_path, FakeProcesses())
        assert session.forecast(retry=retry).cost.runs == runs
    assert (tmp_path / "results.json").read_bytes() == written


def test_several_plans_are_one_document_of_json(tokens, tmp_path, command):
    paths = [tmp_path / "tiny.json", tmp_path / "other.json"]
    for path in paths:
        write_plan(path, tokens, name=path.stem)
        work(plan_of(tokens, name=path.stem), tmp_path, FakeProcesses())
    one = ["lab", str(paths[0]), "--results", str(tmp_path / "results.json"), "--json"]
    two = [*one, "--beside", str(paths[1])]
    for how in ("--dry-run", "--show"):
        alone, both = (json.loads(command(*words, how)) for words in (one, two))
        assert both[0] == alone
        assert [content["plan"] for content in both] == ["tiny", "other"]


def test_a_forecast_knows_runs_apart_by_tokens_that_are_not_made_yet(tmp_path):
    text = {"files": ["a.jsonl"], "validation_files": ["b.jsonl"]}
    variants = [{"name": "few"}, {"name": "more", "changes": ["tokenizer.vocab_size=400"]}]
    plan = plan_of(tmp_path, text=text, variants=variants)
    assert session_of(plan, tmp_path, FakeProcesses()).forecast().cost.trainings == 4


def test_a_run_that_reads_its_text_too_often_is_warned_of(tokens, tmp_path):
    plan = plan_of(tokens, tokens=100_000)
    (warning, _) = session_of(plan, tmp_path, FakeProcesses()).forecast().warnings
    assert warning == "base would read its text about 5.0 times"

"""Whether an evaluation will end in time: said once the speed is known, and when that changes."""

import pytest
from packed_case import write_package
from scoring_case import ALONE, make_lora_config, make_sliding, make_text

from paramgolf.scoring.document_plan import DocumentBatch, Phase, plan_documents
from paramgolf.scoring.evaluation import score_sliding
from paramgolf.scoring.forecast import Forecast, work_of
from paramgolf.scoring.stage import StageSession
from paramgolf.scoring.text import find_documents


def test_it_speaks_when_a_share_is_done_and_when_the_verdict_changes():
    forecast = Forecast(100.0, [1.0] * 100)
    assert forecast.look(1, 10.0) is None  # the speed counts from here on
    assert forecast.look(2, 12.0) is None  # too early to tell
    words = forecast.look(3, 14.0)  # 2 s an item
    assert words == (
        "3% done after 14 s; at this speed 208 s in all, NOT within the 100 s of "
        "verify.eval_seconds"
    )
    assert forecast.look(4, 16.0) is None  # the same verdict
    later = forecast.look(50, 40.0)
    assert "71 s in all, within the 100 s" in later
    assert forecast.look(100, 100.0) is None  # it is over


def test_items_weigh_what_they_cost():
    forecast = Forecast(100.0, [5.0, 90.0, 5.0])
    assert forecast.look(1, 10.0) is None
    assert "58 s in all, within" in forecast.look(2, 55.0)


def test_the_first_part_after_the_start_or_a_crash_says_nothing_of_the_speed():
    forecast = Forecast(100.0, [1.0] * 10)
    assert forecast.look(6, 50.0) is None
    assert "56 s in all" in forecast.look(7, 51.5)


def test_documents_cost_the_tokens_that_are_read():
    documents = {"batch_documents": 2, "phases": 1, "prefix_documents": 4}
    config = make_lora_config("lora_documents", documents=documents)
    items = plan_documents(*find_documents(make_text(300)), config.documents, config.window)
    batches = [item for item in items if isinstance(item, DocumentBatch)]
    costs = [work_of(batch, config) for batch in batches]
    assert costs[0] > 2 * costs[-1]  # the longest come first
    phase = next(item for item in items if isinstance(item, Phase))
    assert work_of(phase, config) == config.epochs * (phase.stop - phase.start).sum()


@pytest.mark.parametrize(("limit", "words"), [(1e9, ", within"), (1e-9, ", NOT within")])
def test_a_stage_says_so_as_it_begins(tmp_path, monkeypatch, capsys, limit, words):
    write_package(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("paramgolf.scoring.sliding.LEAST_PASSES", 1)
    config = make_sliding(batch_windows=2)
    session = StageSession(
        "eval_sliding", config, ALONE, tmp_path / "model.bin", tmp_path, limit_seconds=limit
    )
    score_sliding(tmp_path / "model.bin", tmp_path, config, session)
    said = capsys.readouterr().err
    assert said.count("of verify.eval_seconds") == 1
    assert words in said

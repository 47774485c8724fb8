"""Every recipe, shrunk, runs from train to eval_ttt on a CPU; its artifact is scored.

Two that differ in section `train` alone count as one.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import yaml
from pipeline_case import MODEL_STAGES
from recipe_case import different, narrow_content

ROOT = Path(__file__).parents[2]
SECTIONS = ("model", "calibrate", "quantize", "package", "eval_sliding", "eval_ttt")


def shrink(content: dict) -> dict:
    """Make a recipe small in every other size, and keep everything that it does."""
    model, train = content["model"], content["train"]
    if model["recurrence_unit"] == "step":
        for phase in model["recurrence"]:
            phase["at"] = 3
    train |= {"steps": 6, "budget_seconds": None, "reserve_seconds": 0.0, "warmdown": 0.7}
    train |= {"warmdown_unit": "fraction", "batch_tokens": 512, "micro_batch_tokens": 256}
    train |= {"sequence_length": 64, "curriculum": [], "validation_tokens": 512}
    # tokens drawn at random have no tokenizer, which tells what can come after what
    train["token_mask"] = False
    calibrate = content["calibrate"]
    calibrate |= {"sequences": 6, "batch_sequences": 3}
    calibrate["sensitivity_sequences"] = min(calibrate["sensitivity_sequences"], 6)
    content["quantize"]["adjust_steps"] = min(content["quantize"]["adjust_steps"], 2)
    for stage in ("eval_sliding", "eval_ttt"):
        content[stage] |= {"window": 64, "stride": 32, "batch_windows": 8, "max_tokens": 1500}
        content[stage]["token_mask"] = False
    content["eval_ttt"] |= {"chunk_tokens": 512, "epochs": 1, "batch_sequences": 4}
    content["eval_ttt"]["adapter"] |= {"rank": 2}
    content["eval_ttt"]["documents"] |= {
        "batch_documents": 4,
        "chains": 2,
        "chunk_tokens": 32,
        "prefix_documents": 6,
    }
    content["runtime"] |= {"device": "cpu", "processes": 1}
    return content


@pytest.mark.pipeline
@pytest.mark.parametrize("recipe", [name for name in different(*SECTIONS) if name != "sample"])
def test_a_recipe_runs_whole(recipe, tmp_path, tokens_folder, monkeypatch):
    """In this process, where what is packed for one recipe need not be minified for the next."""
    content = shrink(narrow_content(recipe))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("paramgolf.program.start_stage", lambda: None)
    for stage in MODEL_STAGES:
        runpy.run_path(f"{ROOT}/stages/{stage}.py")["main"]()
    metrics = {
        path.stem: json.loads(path.read_text())
        for path in (tmp_path / "artifacts/metrics").glob("*.json")
    }
    assert set(metrics) == set(MODEL_STAGES)
    assert metrics["package"]["fits"]
    assert metrics["train"]["steps"] == 6
    for stage in ("eval_sliding", "eval_ttt"):
        assert metrics[stage]["tokens_scored"] == 1500
        assert 0.5 < metrics[stage]["val_bpb"] < 8
    assert metrics["eval_ttt"]["ledger"]["score_first"] is True

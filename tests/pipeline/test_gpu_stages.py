"""Every stage from train to eval_ttt on a GPU: it runs, and scores what the CPU scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pipeline_case import MODEL_STAGES

from paramgolf.recipes import compose

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.gpu, pytest.mark.pipeline]


def write_params(folder: Path, device: str) -> None:
    content = compose("sample", ROOT / "recipes")
    content["model"] |= {"heads": 2, "kv_heads": 1}  # 64 channels a head, as the records have
    content["train"] |= {"steps": 60, "sequence_length": 128, "micro_batch_tokens": 2048}
    content["calibrate"] |= {"sequences": 32}
    for name in ("eval_sliding", "eval_ttt"):
        content[name] |= {"window": 128, "stride": 64}
    content["runtime"] |= {"device": device, "processes": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def run_stage(folder: Path, stage: str) -> dict:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    script = [sys.executable, str(ROOT / "stages" / f"{stage}.py")]
    done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / f"artifacts/metrics/{stage}.json").read_text())


def test_stages_run_and_agree_with_the_cpu(tmp_path, tokens_folder):
    write_params(tmp_path, "cuda")
    found = {stage: run_stage(tmp_path, stage) for stage in MODEL_STAGES}
    assert "NVIDIA" in found["train"]["device"]
    assert found["train"]["mfu"] > 0
    gap = found["eval_sliding"]["val_bpb_plain"] - found["train"]["val_bpb"]
    assert -0.01 < gap < 0.05
    write_params(tmp_path, "cpu")  # the same package, scored by the CPU in float32
    for stage in ("eval_sliding", "eval_ttt"):
        on_cpu = run_stage(tmp_path, stage)
        assert on_cpu["val_bpb"] == pytest.approx(found[stage]["val_bpb"], abs=0.01)
        assert on_cpu["bytes_scored"] == found[stage]["bytes_scored"]

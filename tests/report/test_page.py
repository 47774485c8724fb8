"""The report: every figure of a made-up run is on the page, which needs nothing but itself."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from page_check import outside_references, text_of
from run_files import log_lines, metrics, write_run

from paramgolf.errors import ParamGolfError
from paramgolf.metrics import Metrics
from paramgolf.report import byte_map, pictures, views
from paramgolf.report.inputs import Inputs, load_inputs, read_log
from paramgolf.report.page import draw, render, write_report


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("run")
    write_run(root)
    return load_inputs(root)


def shown(inputs: Inputs) -> str:
    """Return the page of some inputs."""
    return render(inputs, draw(inputs))


def with_metrics(inputs: Inputs, **changes: dict[str, Any]) -> Inputs:
    """Return the inputs with other metrics, by stage."""
    by_stage = {stage: found | changes.get(stage, {}) for stage, found in metrics().items()}
    return dataclasses.replace(inputs, metrics=Metrics(by_stage))


def change_params(root: Path, **changes: dict[str, Any]) -> None:
    """Change params.yaml, by section."""
    path = root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params |= {section: params[section] | values for section, values in changes.items()}
    path.write_text(yaml.safe_dump(params))


@pytest.fixture(scope="module")
def page(inputs: Inputs) -> str:
    return shown(inputs)


def test_the_page_is_well_formed_and_shows_the_figures(page):
    text = text_of(page)
    for figure in ("1.7702 bits per byte", "578,000", "15,422,000", "+0.0115", "−0.0196", "102.8"):
        assert figure in text
    for heading in ("Score, step by step", "Where the bytes went", "Configuration", "Environment"):
        assert heading in text
    assert "layers 6" in text
    assert "torch 2.13.0" in text


def test_the_page_needs_nothing_but_itself(page):
    assert not outside_references(page)


def test_each_picture_has_words(page):
    assert len(re.findall(r'role="img" aria-label="\w+', page)) == page.count("<svg") == 4
    assert page.count('<svg viewBox="0 0 720') == 4


def test_the_same_inputs_give_the_same_bytes(tmp_path, page, inputs):
    write_run(tmp_path)
    write_report(tmp_path)
    folder = tmp_path / "artifacts/report"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(first) == ["bpb.png", "bytes.png", "error.png", "index.html", "loss.png"]
    assert first["index.html"].decode() == page
    write_report(tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_text_from_outside_is_escaped(inputs):
    log = dataclasses.replace(inputs.log, environment={"device": "<b>GPU</b>"})
    assert "&lt;b&gt;GPU&lt;/b&gt;" in shown(dataclasses.replace(inputs, log=log))


def test_scores_are_a_chain_of_changes(inputs):
    rows = views.scores(inputs)
    assert [row.value for row in rows] == [1.8012, 1.8127, 1.7931, 1.7702]
    assert sum(row.change or 0 for row in rows) == pytest.approx(1.7702 - 1.8012)
    for before, row in itertools.pairwise(rows):
        assert row.change == pytest.approx(row.value - before.value)


def test_scores_of_a_part_of_the_text_say_so(inputs):
    sliding = {**inputs.params["eval_sliding"], "max_tokens": 8000}
    changed = dataclasses.replace(inputs, params={**inputs.params, "eval_sliding": sliding})
    of_a_part = ["first 8,000 tokens" in row.note for row in views.scores(changed)]
    assert of_a_part == [False, True, True, False]


def test_bytes_add_up_to_the_artifact(inputs):
    parts = views.byte_parts(inputs)
    assert sum(part.bytes for part in parts) == metrics()["package"]["bytes_total"]
    assert sum(part.share for part in parts) == pytest.approx(100)
    assert [part.name for part in parts[-4:]] == ["scales", "vectors", "header", "code"]
    assert parts[0].bits == pytest.approx(8 * 0.43, abs=0.01)


def test_every_tensors_bytes_add_up_to_the_files(inputs, page):
    leaves = byte_map.leaves(inputs.parts)
    assert sum(leaf.bytes for leaf in leaves) == metrics()["package"]["bytes_total"]
    sizes = byte_map.by_family(leaves)
    assert list(sizes) == ["MLP", "attention", "embedding", "vectors", "header", "code"]
    assert sizes["code"] == metrics()["package"]["bytes_code"]
    assert byte_map.Leaf("MLP", "up", "scales", 5000) in leaves
    tiles = re.findall(r"<title>[\w, .]+: [\d,]+ bytes</title>", page)
    assert len(tiles) == len(leaves)


def test_the_pages_evaluations_name_mode_and_order(tmp_path, page):
    assert "strided, stream order" in page
    assert "sgd, stream order" in page
    write_run(tmp_path)
    change_params(tmp_path, eval_ttt={"mode": "lora_documents"})
    changed = shown(load_inputs(tmp_path))
    assert "lora_documents, length order" in changed
    assert "chunks of 48" in changed


def test_network_and_training_are_those_of_the_shipped_program(tmp_path):
    write_run(tmp_path)
    change_params(tmp_path, train={"matrix_lr": 0.0457})
    assert "matrix_lr 0.022" in text_of(shown(load_inputs(tmp_path)))


def test_calibration_counts_as_training_only_where_it_reads_training_text(inputs):
    """And so does the adjustment of scales, which reads the same text within quantize."""
    inputs = with_metrics(inputs, quantize={"adjust_seconds": 1.25})
    rows = {row.name: row for row in views.timings(inputs)}
    assert rows["Training and calibration"].seconds == 96.5 + 6.25 + 1.25
    assert rows["Training and calibration"].limit_place == 100
    assert rows["Quantizing"].seconds == 3.5 - 1.25
    changed = with_metrics(inputs, calibrate={"seconds": 200.0, "source": "generate"})
    rows = {row.name: row for row in views.timings(changed)}
    assert rows["Training and calibration"].seconds == 96.5
    assert rows["Quantizing"].seconds == 3.5
    assert rows["Calibration, on generated text"].limit is None


def test_a_steps_time_is_split_where_it_was_measured(inputs, page):
    assert "A training step" not in page
    split = {"gemm": 60.0, "attention": 25.0, "communication": 0.0, "gaps": 15.0}
    changed = with_metrics(inputs, train={"time_split_ms": split})
    assert views.step_split(changed) == [
        ("gemm", 60.0, 60.0),
        ("attention", 25.0, 25.0),
        ("gaps", 15.0, 15.0),
    ]
    assert "gemm 60.00 60 % attention 25.00 25 %" in text_of(shown(changed))


def test_an_artifact_above_the_limit_is_said_to_be(inputs):
    text = shown(with_metrics(inputs, package={"limit_bytes": 500_000}))
    assert "78,000 bytes over the limit" in text
    assert "15.60 %" in text


def test_errors_are_laid_out_by_layer_and_matrix(inputs):
    for grid, key in zip(
        views.error_grids(inputs.errors), ("output_error", "relative_error"), strict=True
    ):
        cells = {(e.name, e.layer): 100 * getattr(e, key) for e in inputs.errors}
        assert grid.layers == [*range(6)]
        for layer, row in zip(grid.layers, grid.rows, strict=True):
            assert list(row) == [cells[name, layer] for name in grid.columns]
        assert "embedding" in grid.note


def test_long_logs_are_thinned(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, log_lines(5000))))
    picture = pictures.training(read_log(path))
    assert "each point the mean of 13 steps" in picture.words
    assert len(picture.svg()) < 60_000


LOG, LEDGER = "artifacts/train/log.jsonl", "artifacts/package/package.json"
ERRORS = "artifacts/quantize/report.json"
STEP = '{{"event": "start"}}\n{{"event": "step", "step": {step}, "loss": {loss}, "lr": 1}}'


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (LOG, None, "there is no file"),
        (LOG, "{", "not JSON\n  where: .*log.jsonl, line 1"),
        (LOG, "[]", "not a JSON object"),
        (LOG, STEP.format(step=1, loss='"low"'), "`loss` a number in each `step`"),
        (LOG, STEP.format(step=1e308, loss=2), "`step` a number in each `step`"),
        (LOG, '{"event": "step"}', "not a training log"),
        (LOG, '{"step": 1}', "`event` is missing"),
        (LOG, '{"event": "start"}\n{"event": "step", "step": 1, "lr": 1}', "`loss` is missing"),
        (ERRORS, "{}", "`tensors` is missing"),
        (ERRORS, '{"tensors": [3]}', "`tensors.0` must be a mapping"),
        (LEDGER, "{}", "`parts` is missing"),
        (ERRORS, '{"tensors": []}', "`tensors` must hold a matrix"),
        (LEDGER, '{"parts": []}', "`parts` must share out bytes"),
        (LEDGER, '{"parts": 3}', "`parts` must be a list, found 3"),
        (LEDGER, '{"parts": ["a"]}', "`parts.0` must be a mapping"),
        (
            LEDGER,
            '{"parts": [{"name": "q", "kind": "odd", "bytes": -1, "raw_bytes": 1, "codec": null, '
            '"shares": {"q": "many"}}]}',
            "(?s)`parts.0.kind` must be one of .*`parts.0.bytes` must be at least 0.*shares.q` ",
        ),
        ("artifacts/metrics/quantize.json", '{"adjust_seconds": 1}', "`seconds` is missing"),
        (
            "artifacts/metrics/train.json",
            '{"train_seconds": "long"}',
            "`train_seconds` must be a number",
        ),
        ("artifacts/metrics/eval_ttt.json", None, "there is no file"),
        ("params.yaml", "train: {}", "is missing"),
    ],
)
def test_a_bad_input_is_named(file, content, message, tmp_path):
    write_run(tmp_path)
    path: Path = tmp_path / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ParamGolfError, match=message) as caught:
        shown(load_inputs(tmp_path))
    assert Path(file).name in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        ("train", "parameters", "many"),
        ("train", "steps", None),
        ("train", "time_split_ms", {"matmul": "long"}),
        ("quantize", "seconds", "long"),
        ("package", "bytes_total", 0),
        ("package", "seconds", []),
        ("eval_sliding", "val_bpb_plain", "low"),
    ],
)
def test_a_metric_of_another_kind_is_named(stage, key, value, tmp_path):
    write_run(tmp_path, {stage: {key: value}})
    with pytest.raises(ParamGolfError, match=rf"`{key}[.\w]*` must be (.|\n)*{stage}\.json"):
        load_inputs(tmp_path)


def test_limits_of_params_yaml_are_shown(tmp_path):
    write_run(tmp_path)
    change_params(tmp_path, verify={"eval_seconds": 123})
    rows = {row.name: row for row in views.timings(load_inputs(tmp_path))}
    assert rows["Adapted evaluation"].limit == 123.0


def test_scores_of_different_parts_of_the_text_are_said_not_to_compare(inputs, page):
    assert "do not compare" not in page
    changed = with_metrics(inputs, eval_ttt={"tokens_scored": 1000})
    assert "they score 2,000, 2,000, 2,000 and 1,000 tokens" in shown(changed)

"""The rules over a made-up run: each is broken once, by the fault it is there for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from run_files import BYTES, PROBE, ROOT, TOKENS, evaluation, write_documents, write_run

from paramgolf.errors import ParamGolfError
from paramgolf.files import sha256_file, write_json
from paramgolf.verify.config import VerifyConfig
from paramgolf.verify.rules import RULES, verify

LIMITS = {
    "enforce": True,
    "train_seconds": 600.0,
    "eval_seconds": 600.0,
    "allow_normalisation": False,
    "guard_training": True,
    "full_validation": True,
}


def verdict_of(root: Path) -> tuple[dict, dict[str, str]]:
    """Return verify.json, and the reason by rule."""
    content = json.loads((root / "artifacts/metrics/verify.json").read_text())
    return content, {verdict["rule"]: verdict["reason"] for verdict in content["reasons"]}


def broken(root: Path) -> tuple[list[str], dict[str, str]]:
    """Return the rules that what lies there breaks, and the reason by rule."""
    assert verify(VerifyConfig(**LIMITS), root) is False
    content, reasons = verdict_of(root)
    return [rule for rule, outcome in content["rules"].items() if outcome == "fail"], reasons


def refuse(root: Path, expected: str) -> None:
    with pytest.raises(ParamGolfError, match=expected):
        verify(VerifyConfig(**LIMITS), root)


def outcomes(root: Path, changes: dict | None = None, **limits: object) -> dict[str, str]:
    """Return the outcome of each rule for the made-up run with changes."""
    write_run(root, changes)
    kept = verify(VerifyConfig(**(LIMITS | limits)), root)
    content, reasons = verdict_of(root)
    found = content["rules"]
    assert list(reasons) == list(RULES)
    assert found.keys() == RULES.keys()
    assert content["failed"] == list(found.values()).count("fail")
    assert content["passed"] is kept is (content["failed"] == 0)
    return found


def ledger(stage: str, **changes: object) -> dict:
    """Return the change of a stage's ledger."""
    updates = 93 if stage == "eval_ttt" else 0
    return {stage: {"ledger": evaluation(1.7, 1.8, updates)["ledger"] | changes}}


def test_a_run_that_keeps_every_rule(tmp_path, capsys):
    assert outcomes(tmp_path) == dict.fromkeys(RULES, "pass")
    printed = capsys.readouterr().out
    assert "R1  pass           artifact fits its bytes: 18,000 of code + 560,000" in printed
    assert printed.endswith("no rule is broken\n")


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("R1", {"package": {"bytes_model": 15_982_001, "bytes_total": 16_000_001}}),
        ("R1", {"package": {"bytes_total": 577_999}}),  # code and weights do not add up to it
        ("R2", {"train": {"train_seconds": 594.0}}),  # 6.25 s of calibration take it over
        ("R2", {"quantize": {"adjust_seconds": 600.0}}),
        ("R3", {"eval_ttt": {"seconds": 600.5}}),
        ("R3", {"eval_sliding": {"seconds": -40.0}}),  # a start that was given, not measured
        ("R4", {"eval_ttt": {"train_tokens_read": 2_000_000}}),  # n-grams of training text
        ("R5", {"audit": {"train_val_overlap": 1}}),
        ("R6", {"eval_sliding": {"probe": {**PROBE, "causal_error": 0.02}}}),
        ("R6", {"eval_ttt": {"probe": {**PROBE, "passes": 0}}}),
        ("R6", ledger("eval_ttt", targets_trained=TOKENS)),  # on more than was scored
        ("R6", ledger("eval_sliding", score_first=False)),
        ("R6", ledger("eval_sliding", updates=50, targets_trained=100)),  # it never learns
        ("R7", {"eval_sliding": {"val_loss": 0.0}}),
        ("R7", {"eval_ttt": {"probe": {**PROBE, "sum_error": 276.0}}}),  # a hashed cache (#886)
        ("R7", {"eval_ttt": {"probe": {**PROBE, "score_error": 0.1}}}),
        ("R7", {"eval_sliding": {"probe": {**PROBE, "positions": 0}}}),
        ("R8", ledger("eval_ttt", score_first=False)),
        ("R8", {"eval_ttt": {"updates": 94}}),
        ("R9", ledger("eval_sliding", scored_once=False)),
        ("R9", ledger("eval_ttt", targets=TOKENS)),
        ("R10", {"eval_ttt": {"tokens_scored": 1999}}),
        ("R11", {"audit": {"bytes_val_counted": BYTES + 1}}),
        ("R11", {"audit": {"lossless": False}}),
        ("R11", {"eval_sliding": {"bytes_scored": BYTES + 1000}}),  # a flattering denominator
        ("R11", {"eval_ttt": {"val_bpb": 1.5}}),
    ],
)
def test_a_broken_rule_fails(rule, changes, tmp_path, capsys):
    assert outcomes(tmp_path, changes)[rule] == "fail"
    assert rule in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("artifacts/package/model.bin", "is another file than eval_ttt used"),
        ("artifacts/package/train_gpt.py", "is another file than package used"),
        ("data/tokens/val_000000.bin", "is another file than audit used"),
        ("data/tokens/manifest.json", "is another file than eval_sliding used"),
        ("data/raw/val.jsonl.zst", "is another file than audit used"),
        ("artifacts/eval_ttt/documents.parquet", "is another file than eval_ttt used"),
    ],
)
def test_figures_of_other_files_are_not_those_of_the_run(path, said, tmp_path):
    """A byte changed after the stages ran: the metrics are as they were."""
    write_run(tmp_path)
    content = bytearray((tmp_path / path).read_bytes())
    content[-2] ^= 1 if path.endswith("bin") else 0
    (tmp_path / path).write_bytes(content if path.endswith("bin") else bytes(content) + b" ")
    if path.endswith("parquet"):
        write_documents(tmp_path / path, evaluation(1.7702, 1.8127, 93) | {"val_loss": 1.0})
    assert f"{path} {said}" in broken(tmp_path)[1]["R15"]


def test_a_file_that_is_gone_or_was_never_named_is_said(tmp_path):
    write_run(tmp_path)
    (tmp_path / "artifacts/package/model.bin").unlink()
    path = tmp_path / "artifacts/metrics/eval_sliding.json"
    write_json(path, json.loads(path.read_text()) | {"read": []})
    rules, reasons = broken(tmp_path)
    assert "model.bin is not there" in reasons["R15"]
    assert "eval_sliding does not say which data/tokens/manifest.json" in reasons["R15"]
    assert "R1" in rules  # the bytes on disk are not those recorded


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_scores_by_document_that_cannot_be_read_break_r15(keep, tmp_path):
    write_run(tmp_path)
    path = tmp_path / "artifacts/eval_ttt/documents.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    assert "eval_ttt/documents.parquet cannot be read: " in broken(tmp_path)[1]["R15"]


def test_a_score_that_its_documents_do_not_add_up_to_breaks_r15(tmp_path):
    """Loss, score, bytes and tokens agree with one another, and were all written by hand."""
    write_run(tmp_path)
    path = tmp_path / "artifacts/metrics/eval_ttt.json"
    forged = json.loads(path.read_text())
    forged |= {key: 0.9 * forged[key] for key in ("val_bpb", "val_loss")}
    write_json(path, forged)
    rules, reasons = broken(tmp_path)
    assert rules == ["R15"]
    assert "eval_ttt: val_bpb is 1.59318" in reasons["R15"]


def test_calibration_on_generated_text_is_not_training_time(tmp_path):
    changes = {"train": {"train_seconds": 599.0}, "calibrate": {"source": "generate"}}
    assert outcomes(tmp_path, changes)["R2"] == "pass"


@pytest.mark.parametrize("path", ["artifacts/train", "artifacts/code/weights.bin"])
def test_an_evaluator_with_another_input_breaks_r4(path, tmp_path):
    write_run(tmp_path)
    plan = yaml.safe_load((tmp_path / "dvc.yaml").read_text())
    plan["stages"]["eval_ttt"]["deps"].append(path)
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(plan))
    assert broken(tmp_path)[1]["R4"] == f"eval_ttt also reads {path}"


def test_an_evaluator_without_the_package_breaks_r4(tmp_path):
    write_run(tmp_path)
    plan = yaml.safe_load((tmp_path / "dvc.yaml").read_text())
    plan["stages"]["eval_ttt"]["deps"].remove("artifacts/package/model.bin")
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(plan))
    path = tmp_path / "artifacts/metrics/eval_ttt.json"
    found = json.loads(path.read_text())
    found["read"] = [file for file in found["read"] if "package" not in file["path"]]
    write_json(path, found)
    assert broken(tmp_path)[1]["R4"] == "eval_ttt does not read artifacts/package/model.bin"


def test_a_file_that_an_evaluator_read_from_elsewhere_breaks_r4(tmp_path):
    write_run(tmp_path)
    weights = tmp_path / "artifacts/train/model.safetensors"
    weights.parent.mkdir(exist_ok=True)
    weights.write_bytes(b"all that training left")
    path = tmp_path / "artifacts/metrics/eval_ttt.json"
    found = json.loads(path.read_text())
    found["read"].append(
        {"path": "artifacts/train/model.safetensors", "sha256": sha256_file(weights)}
    )
    write_json(path, found)
    assert broken(tmp_path)[1]["R4"] == "eval_ttt also reads artifacts/train/model.safetensors"


def test_an_evaluator_that_does_not_say_what_it_read_breaks_r15(tmp_path):
    write_run(tmp_path)
    path = tmp_path / "artifacts/metrics/eval_ttt.json"
    found = json.loads(path.read_text())
    del found["read"]
    write_json(path, found)
    assert "eval_ttt does not say which" in broken(tmp_path)[1]["R15"]


ANCHORS = """
stages:
  eval_sliding: &evaluator
    cmd: none
    deps: &data
      - artifacts/package/model.bin
      - ./data/tokens
  eval_ttt:
    <<: *evaluator
    deps: *data
"""


def test_a_plan_may_have_anchors_as_dvc_permits(tmp_path):
    write_run(tmp_path)
    (tmp_path / "dvc.yaml").write_text(ANCHORS)
    assert verify(VerifyConfig(**LIMITS), tmp_path) is True


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("stages: {eval_sliding: {deps: [a]}}", "`eval_ttt` is missing"),
        ("stages: {eval_sliding: {foreach: [1], do: {cmd: a}}}", "`deps` is missing"),
        ("artifacts: {}", "`stages` is missing"),
    ],
)
def test_a_plan_without_the_evaluators_is_named(tmp_path, plan, message):
    write_run(tmp_path)
    (tmp_path / "dvc.yaml").write_text(plan)
    refuse(tmp_path, rf"{message}(.|\n)*dvc\.yaml")


def test_the_verdicts_are_written_whoever_reads_what_is_printed(tmp_path, monkeypatch):
    def closed(*_: object) -> None:
        raise BrokenPipeError

    write_run(tmp_path)
    monkeypatch.setattr("builtins.print", closed)
    with pytest.raises(BrokenPipeError):
        verify(VerifyConfig(**LIMITS), tmp_path)
    assert verdict_of(tmp_path)[0]["passed"] is True


def test_rules_that_do_not_apply(tmp_path):
    part = {"tokens_scored": 1000, "bytes_scored": 3400}
    changes = {
        "eval_sliding": evaluation(1.8, 1.9, 0) | part,
        "eval_ttt": evaluation(1.8, 1.9, 0) | part | {"updates": 0},
    }
    for metrics in changes.values():
        metrics["val_bpb"] = metrics["val_loss"] * 1000 / 3400 / 0.6931471805599453
        metrics["ledger"] = metrics["ledger"] | {"targets": 1000}
    found = outcomes(tmp_path, changes, full_validation=False)
    assert found.pop("R8") == found.pop("R10") == "not applicable"
    assert set(found.values()) == {"pass"}
    assert outcomes(tmp_path, changes)["R10"] == "fail"
    metrics |= {"bytes_scored": BYTES + 1, "val_bpb": metrics["val_bpb"] * 3400 / (BYTES + 1)}
    assert outcomes(tmp_path, changes, full_validation=False)["R11"] == "fail"


@pytest.mark.parametrize(
    ("normalization", "outcome"),
    [("nmt_nfkc", "pass"), ("published", "pass"), ("other", "fail")],
)
def test_a_published_normalization_is_accepted_where_that_is_said(tmp_path, normalization, outcome):
    audit = {"lossless": False, "normalization": normalization, "bytes_val_raw": BYTES + 50}
    assert outcomes(tmp_path, {"audit": audit}, allow_normalisation=True)["R11"] == outcome
    assert outcomes(tmp_path, {"audit": audit})["R11"] == "fail"


def test_the_sign_for_a_space_breaks_no_rule(tmp_path):
    audit = {"lossless": False, "normalization": "space_sign", "bytes_val_raw": BYTES + 2}
    assert outcomes(tmp_path, {"audit": audit})["R11"] == "pass"


def test_a_missing_metric_is_named(tmp_path):
    write_run(tmp_path)
    path = tmp_path / "artifacts/metrics/package.json"
    content = json.loads(path.read_text())
    del content["bytes_code"]
    path.write_text(json.dumps(content))
    refuse(tmp_path, r"`bytes_code` is missing(.|\n)*dvc repro -f -s package")


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        ("audit", "lossless", "no"),  # which is true
        ("audit", "read", ["data/raw/val.jsonl.zst"]),
        ("train", "train_seconds", None),
        ("package", "bytes_total", "588,559"),
        ("eval_sliding", "tokens_scored", [1999]),
        ("eval_sliding", "probe.sum_error", -1),
        ("eval_ttt", "ledger.score_first", 1),
        ("eval_ttt", "ledger.targets", True),
    ],
)
def test_a_metric_of_no_sense_is_named(stage, key, value, tmp_path):
    write_run(tmp_path)
    path = tmp_path / f"artifacts/metrics/{stage}.json"
    content = json.loads(path.read_text())
    *above, last = key.split(".")
    section = content[above[0]] if above else content
    section[last] = value
    write_json(path, content)
    refuse(tmp_path, rf"`{key}[\w.]*` must be (.|\n)*{path}(.|\n)*dvc repro -f -s {stage}")


def test_a_missing_metrics_file_is_named(tmp_path):
    write_run(tmp_path)
    (tmp_path / "artifacts/metrics/eval_ttt.json").unlink()
    refuse(tmp_path, r"there is no file .*eval_ttt.json")


@pytest.mark.parametrize(("enforce", "code"), [(True, 1), (False, 0)])
def test_the_stage_fails_only_where_rules_are_enforced(enforce, code, tmp_path):
    write_run(tmp_path, {"package": {"bytes_model": 16_000_000, "bytes_total": 16_018_000}})
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["verify"]["enforce"] = enforce
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    script = ROOT / "stages/verify.py"
    result = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == code
    assert "broken: R1" in result.stdout
    assert ("verify.enforce=false" in result.stdout) == enforce
    assert verdict_of(tmp_path)[0]["failed"] == 1


def test_dvc_leaves_the_verdict_of_a_broken_rule(tmp_path):
    """The failing stage's output is not cached by DVC, yet it stays for the reader."""
    write_run(tmp_path, {"audit": {"train_val_overlap": 3}})
    stage = {
        "cmd": f"{sys.executable} {ROOT / 'stages/verify.py'}",
        "deps": ["artifacts/metrics/audit.json"],
        "outs": [{"artifacts/metrics/verify.json": {"cache": False}}],
    }
    plan = yaml.safe_load((tmp_path / "dvc.yaml").read_text())["stages"]
    keep = {
        name: {"cmd": "true", "deps": plan[name]["deps"]} for name in ("eval_sliding", "eval_ttt")
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {**keep, "verify": stage}}))
    for command in (["init", "--no-scm", "-q"], ["repro", "-s", "verify"]):
        line = [sys.executable, "-m", "dvc", *command]
        result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0
    content, reasons = verdict_of(tmp_path)
    assert content["rules"]["R5"] == "fail"
    assert "3 of 64 validation documents" in reasons["R5"]

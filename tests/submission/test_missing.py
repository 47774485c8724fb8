"""What a submission's runs say of themselves must be of the kinds that the stages write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_files import metrics, write_run

from paramgolf.recipes import flatten
from paramgolf.report.inputs import read_log
from paramgolf.submission.about import NON_RECORD, About
from paramgolf.submission.collect import SeedRun
from paramgolf.submission.missing import missing
from paramgolf.verify.rules import RULES

ROOT = Path(__file__).parents[2]
VERDICT = {
    "rules": dict.fromkeys(RULES, "pass"),
    "reasons": [{"rule": rule, "name": "a rule", "reason": "so"} for rule in RULES],
}
MACHINE = '{"event": "start", "cuda": null, "device": "cpu", "python": "3", "torch": "2", '


def said(root: Path, changes: dict[str, Any]) -> list[str]:
    """Return what is missing of a run whose metrics have `changes`, by dotted key."""
    found = flatten({**metrics(), "verify": VERDICT}) | changes
    for name in ("model.bin", "train_gpt.py", "log.jsonl"):
        folder = "train" if name == "log.jsonl" else "package"
        (root / name).write_bytes((root / "artifacts" / folder / name).read_bytes())
    (root / "manifest.json").write_text("{}")
    run = SeedRun("one", {}, found, commit=None, folder=root, log=read_log(root / "log.jsonl"))
    words = dict.fromkeys(("name", "author", "github_id", "blurb"), "said")
    about = About(**words, track=NON_RECORD, credits={})
    return [line for line in missing([run], about, ROOT) if line.startswith("`one`: metric")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_run(tmp_path)
    log = tmp_path / "artifacts/train/log.jsonl"
    _, *rest = log.read_text().splitlines()
    log.write_text("\n".join([f'{MACHINE}"world_size": 1}}', *rest]))
    return tmp_path


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("package.bytes_model", "many", "`package.bytes_model` must be a whole number"),
        ("train.steps", None, "`train.steps` must be a whole number"),
        ("eval_ttt.ledger.updates", [], "`eval_ttt.ledger.updates` must be a whole number"),
        ("verify.reasons", ["so"], "`verify.reasons.0` must be a mapping"),
        ("verify.reasons", [], "`verify.rules` must be of R1, "),
    ],
)
def test_a_metric_of_another_kind_is_named(root, key, value, message):
    (line,) = said(root, {key: value})
    assert message in line


def test_metrics_as_the_stages_write_them_have_no_fault(root):
    assert said(root, {}) == []


def test_a_log_that_does_not_tell_the_machine_is_named(root):
    log = root / "artifacts/train/log.jsonl"
    log.write_text(log.read_text().replace('"torch": "2", ', ""))
    assert said(root, {}) == ["`one`: metric `log.torch` is missing"]

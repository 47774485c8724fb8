"""Everything the report shows, read strictly from the files of the other stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramgolf.errors import ParamGolfError
from paramgolf.files import file_size, parse_object, read_json
from paramgolf.metrics import STAGES, Metrics, load_metrics, need
from paramgolf.packing.script import read_script
from paramgolf.params import PARAMS_PATH, load_params, read_yaml
from paramgolf.training_log import LOG, LOG_FIX, of_event
from paramgolf.verify.config import VerifyConfig
from paramgolf.verify.recorded import check_recorded

SECTIONS = ("data", "tokenizer", "model", "train", *STAGES[2:])
ERRORS = Path("artifacts/quantize/report.json")
PACKAGE = Path("artifacts/package/package.json")
SCRIPT = Path("artifacts/package/train_gpt.py")
SHIPPED = ("model", "train")


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The training log: the environment, and each step and validation in its order."""

    environment: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the report is made of; `params` holds the sections that make a result.

    Network and training are those of the shipped program, the others those of params.yaml. Of the
    limits it reads the seconds, and dvc.yaml lists those alone.
    """

    metrics: Metrics
    log: TrainingLog
    errors: Sequence[Mapping[str, Any]]
    package: Mapping[str, Any]
    params: Mapping[str, Mapping[str, Any]]
    limits: VerifyConfig

    def param(self, key: str) -> Any:
        """Return a parameter by its dotted key."""
        value: Any = self.params
        for word in key.split("."):
            value = need(value, word, PARAMS_PATH)
        return value

    def metric(self, key: str) -> Any:
        """Return a metric by stage and name; None where an evaluator has none of that name."""
        stage, _, name = key.partition(".")
        return self.metrics.by_stage[stage].get(name)


def load_inputs(root: Path = Path()) -> Inputs:
    """Read every input; a missing file or key, or a metric of no sense, is a ParamGolfError."""
    errors = read_json(root / ERRORS, fix="make it with `dvc repro quantize`")
    content = read_yaml(root / PARAMS_PATH)
    shipped = read_script(root / SCRIPT).params
    content |= {section: need(shipped, section, SCRIPT) for section in SHIPPED}
    metrics = load_metrics(STAGES, root)
    check_recorded(metrics, root)
    return Inputs(
        metrics,
        read_log(root / LOG),
        need(errors, "tensors", ERRORS),
        read_json(root / PACKAGE, fix="make it with `dvc repro package`"),
        {section: need(content, section, PARAMS_PATH) for section in SECTIONS},
        load_params(VerifyConfig, "verify", root / PARAMS_PATH),
    )


def read_log(path: Path) -> TrainingLog:
    """Read a training log; its first line is the environment."""
    file_size(path, fix=LOG_FIX)
    return parse_log(path.read_bytes(), path)


def parse_log(content: bytes, path: object) -> TrainingLog:
    """Return what a training log holds; `path` names it in messages."""
    records = [
        parse_object(line, f"{path}, line {number}", fix=LOG_FIX)
        for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1)
    ]
    events = [need(record, "event", path, fix=LOG_FIX) for record in records]
    if events[:1] != ["start"] or "step" not in events:
        expected = "a first line with event `start`, and steps"
        found = f"events {', '.join(sorted({str(event) for event in events}))[:200]}"
        raise ParamGolfError("not a training log", where=path, expected=expected, found=found)
    steps = of_event(records, "step", ("step", "loss", "lr"), path)
    validations = of_event(records, "validation", ("step", "val_loss", "val_bpb"), path)
    environment = {key: value for key, value in records[0].items() if key != "event"}
    return TrainingLog(environment, steps, validations)

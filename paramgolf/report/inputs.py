"""Everything the report shows, read strictly from the files of the other stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from paramgolf.codec.byte_ledger import Part
from paramgolf.errors import ParamGolfError
from paramgolf.files import file_size, parse_object, read_json
from paramgolf.metrics import STAGES, Metrics, load_metrics, need
from paramgolf.model.shapes import MATRICES
from paramgolf.packing.script import read_script
from paramgolf.params import PARAMS_PATH, load_params, read_yaml
from paramgolf.schema import Fault, Foreign, Natural, Range, parse
from paramgolf.training_log import LARGEST, LOG, LOG_FIX, of_event
from paramgolf.verify.config import VerifyConfig
from paramgolf.verify.recorded import check_recorded

SECTIONS = ("data", "tokenizer", "model", "train", *STAGES[2:])
ERRORS = Path("artifacts/quantize/report.json")
PACKAGE = Path("artifacts/package/package.json")
ERRORS_FIX = "make it again with `dvc repro -f -s quantize`"
PACKAGE_FIX = "make it again with `dvc repro -f -s package`"
SCRIPT = Path("artifacts/package/train_gpt.py")
Drawn = Annotated[float, Range(-LARGEST, LARGEST)]  # its logarithm, in per cent, gives the decimals
SHIPPED = ("model", "train")


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The training log: the environment, and each step and validation in its order."""

    environment: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class MatrixErrors(Foreign):
    """What quantize lost of a matrix, of all that its report tells."""

    name: str
    layer: Natural
    output_error: Drawn
    relative_error: Drawn


@dataclass(frozen=True, slots=True)
class ErrorReport(Foreign):
    """report.json of quantize."""

    tensors: tuple[MatrixErrors, ...]

    def faults(self) -> Iterator[Fault]:
        """Without a matrix there is nothing to show."""
        if not any(each.name in MATRICES for each in self.tensors):
            yield "tensors", f"must hold a matrix: {', '.join(MATRICES)}"


@dataclass(frozen=True, slots=True)
class Ledger(Foreign):
    """package.json: the bytes of both files of the artifact."""

    parts: tuple[Part, ...]

    def faults(self) -> Iterator[Fault]:
        """Without bytes there is nothing to show."""
        if not any(size for part in self.parts for size in part.shares.values()):
            yield "parts", "must share out bytes"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the report is made of; `params` holds the sections that make a result.

    Network and training are those of the shipped program, the others those of params.yaml. Of the
    limits it reads the seconds, and dvc.yaml lists those alone.
    """

    metrics: Metrics
    log: TrainingLog
    errors: Sequence[MatrixErrors]
    parts: Sequence[Part]
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
    errors = read_json(root / ERRORS, fix=ERRORS_FIX)
    ledger = read_json(root / PACKAGE, fix=PACKAGE_FIX)
    content = read_yaml(root / PARAMS_PATH)
    shipped = read_script(root / SCRIPT).params
    content |= {section: need(shipped, section, SCRIPT) for section in SHIPPED}
    metrics = load_metrics(STAGES, root)
    check_recorded(metrics, root)
    return Inputs(
        metrics,
        read_log(root / LOG),
        parse(ErrorReport, errors, "", where=ERRORS, of="the report", fix=ERRORS_FIX).tensors,
        parse_ledger(ledger, PACKAGE),
        {section: need(content, section, PARAMS_PATH) for section in SECTIONS},
        load_params(VerifyConfig, "verify", root / PARAMS_PATH),
    )


def parse_ledger(content: Any, where: object) -> tuple[Part, ...]:
    """Return the parts of the artifact by the content of a package.json, at `where`."""
    return parse(Ledger, content, "", where=where, of="the ledger", fix=PACKAGE_FIX).parts


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

"""What the stages record that rules, report and submission look at: metrics have more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paramgolf.metrics import METRICS, Metrics
from paramgolf.schema import Foreign, Natural, NaturalFloat, Positive, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedFile(Foreign):
    """A file that a stage read or wrote."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited(Foreign):
    """Metrics of audit."""

    bytes_val_counted: Natural
    bytes_val_raw: Natural
    documents_train: Natural
    documents_val: Natural
    lossless: bool
    near_copies: Natural
    normalization: str
    train_val_overlap: Natural
    read: tuple[UsedFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedIn(Foreign):
    """Metrics of train; `time_split_ms` is measured on a GPU alone."""

    device: str
    parameters: Positive
    steps: Natural
    tokens: Natural
    train_seconds: NaturalFloat
    val_bpb: float
    world_size: Positive
    time_split_ms: dict[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedIn(Foreign):
    """Metrics of calibrate."""

    seconds: NaturalFloat
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedIn(Foreign):
    """Metrics of quantize."""

    adjust_seconds: NaturalFloat
    seconds: NaturalFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed(Foreign):
    """Metrics of package."""

    bytes_code: Natural
    bytes_model: Natural
    bytes_total: Positive
    limit_bytes: Positive
    seconds: NaturalFloat
    read: tuple[UsedFile, ...] = ()
    wrote: tuple[UsedFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed(Foreign):
    """What an evaluator's probe found."""

    causal_error: NaturalFloat
    passes: Natural
    positions: Natural
    score_error: NaturalFloat
    sum_error: NaturalFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered(Foreign):
    """What an evaluator's ledger holds."""

    score_first: bool
    scored_once: bool
    targets: Natural
    targets_trained: Natural
    updates: Natural


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored(Foreign):
    """Metrics of an evaluator; `updates` of the one that adapts."""

    bytes_scored: Natural
    ledger: Entered
    probe: Probed
    seconds: float
    tokens_scored: Natural
    train_tokens_read: Natural
    val_bpb: float
    val_bpb_plain: float
    val_loss: float
    read: tuple[UsedFile, ...] = ()
    wrote: tuple[UsedFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted(Scored):
    """Metrics of the evaluator that adapts."""

    updates: Natural


RECORDED: dict[str, type[Foreign]] = {
    "audit": Audited,
    "train": TrainedIn,
    "calibrate": CalibratedIn,
    "quantize": QuantizedIn,
    "package": Packed,
    "eval_sliding": Scored,
    "eval_ttt": Adapted,
}


def check_recorded(metrics: Metrics, root: Path) -> None:
    """Raise ParamGolfError where a stage's metrics lack what is looked at, or are of no sense.

    A text where a truth belongs would count as true, and break no rule.
    """
    for stage, kind in RECORDED.items():
        where = root / METRICS / f"{stage}.json"
        fix = f"make it again with `dvc repro -f -s {stage}`"
        parse(kind, metrics.by_stage[stage], "", where=where, of="the metrics", fix=fix)

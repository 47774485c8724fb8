"""Bits per byte from step to step of the pipeline, and how each evaluation scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

SCORES = (
    ("Trained", "train", "val_bpb"),
    ("Quantized and packed", "eval_sliding", "val_bpb_plain"),
    ("Sliding window", "eval_sliding", "val_bpb"),
    ("Adapted", "eval_ttt", "val_bpb"),
)
DECIMALS = 4  # of bits per byte on the page
EVALUATORS = {"eval_sliding": "Sliding window", "eval_ttt": "Adapted"}
Lookup = Callable[[str], Any]  # a parameter or metric by dotted key; None where there is none


@dataclass(frozen=True, slots=True)
class Score:
    """Bits per byte after one more step of the pipeline; `note` says how it was scored.

    A run may lack a value: then it has no change.
    """

    name: str
    note: str
    value: float | None
    change: float | None = None

    @property
    def trend(self) -> str:
        """Whether the change, as it is shown, is for the worse or the better, or neither."""
        change = round(self.change or 0.0, DECIMALS)
        return "worse" if change > 0 else "better" if change < 0 else "same"


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """How an evaluation scored, in words, and what it took; a figure is None where unknown."""

    name: str
    mode: str
    order: str
    context: str
    mixture: str
    targets: int | None
    updates: int | None
    seconds: float | None


def chain(values: Sequence[float | None], ways: Sequence[str]) -> list[Score]:
    """Return a row for each of SCORES; a change is from the nearest value before that is known.

    `ways` says how each was scored.
    """
    rows: list[Score] = []
    before: float | None = None
    for (name, _, _), value, note in zip(SCORES, values, ways, strict=True):
        change = None if value is None or before is None else value - before
        rows.append(Score(name, note, value, change))
        before = before if value is None else value
    return rows


def notes(params: Lookup) -> list[str]:
    """Return how each of SCORES was scored: the first two plain, then mode and order."""
    parts = {stage: _part(params(f"{stage}.max_tokens")) for stage in EVALUATORS}
    described = {stage: evaluation(stage, params, lambda _: None) for stage in EVALUATORS}
    return [
        "averaged weights, plain",
        f"plain{parts['eval_sliding']}",
        *(f"{each.mode}, {each.order} order{parts[at]}" for at, each in described.items()),
    ]


def _part(max_tokens: int | None) -> str:
    """Say of which part of the text a score is, unless of all: training always scores all."""
    return "" if max_tokens is None else f", first {max_tokens:,} tokens"


def evaluation(stage: str, params: Lookup, metrics: Lookup) -> EvaluationRow:
    """Return how a stage scored; the order is that in which targets are scored."""
    mode = params(f"{stage}.mode")
    order = params(f"{stage}.documents.order") if mode == "lora_documents" else "stream"
    kind = params(f"{stage}.mixture.kind")
    window, stride = (params(f"{stage}.{key}") for key in ("window", "stride"))
    steps = f"stride {stride}"
    if mode == "lora_documents":
        steps = f"chunks of {params(f'{stage}.documents.chunk_tokens')}"
    return EvaluationRow(
        name=EVALUATORS[stage],
        mode=str(mode),
        order=str(order),
        context=f"window {window}, {steps}",
        mixture="none" if kind in (None, "none") else str(kind),
        targets=metrics(f"{stage}.tokens_scored"),
        updates=metrics(f"{stage}.updates"),
        seconds=metrics(f"{stage}.seconds"),
    )

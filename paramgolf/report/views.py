"""What each part of the page shows, computed from the inputs and free of HTML."""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass

from paramgolf.codec.byte_ledger import Kind
from paramgolf.model.shapes import MATRICES
from paramgolf.report.inputs import Inputs, MatrixErrors
from paramgolf.report.scores import SCORES, Score, chain, notes

KINDS = typing.get_args(Kind)  # of parts, in the page's order


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds against a limit (None: there is none); widths are in per cent of the longest bar."""

    name: str
    seconds: float
    limit: float | None
    parts: Sequence[tuple[str, float]]
    limit_place: float | None


@dataclass(frozen=True, slots=True)
class ByteRow:
    """Bytes of a part; per cent of the artifact and of the limit; bits per weight."""

    name: str
    bytes: int
    share: float
    of_limit: float
    bits: float | None


@dataclass(frozen=True, slots=True)
class ErrorGrid:
    """Errors in per cent by layer (rows) and matrix (columns); None: there is no such matrix."""

    title: str
    note: str
    columns: Sequence[str]
    layers: Sequence[int]
    rows: Sequence[Sequence[float | None]]
    decimals: int


def scores(inputs: Inputs) -> list[Score]:
    """Return bits per byte after each step of the pipeline."""
    values = [float(inputs.metrics.get(stage, key)) for _, stage, key in SCORES]
    return chain(values, notes(inputs.param))


def timings(inputs: Inputs) -> list[StageTime]:
    """Return the seconds of each stage that has them; reading training text counts as training."""
    get, limits = inputs.metrics.get, inputs.limits
    train = [("training", float(get("train", "train_seconds")))]
    calibration = ("calibration", float(get("calibrate", "seconds")))
    adjustment = ("adjustment", float(get("quantize", "adjust_seconds")))
    quantizing = [("quantizing", float(get("quantize", "seconds")) - adjustment[1])]
    rest: list[tuple[str, list[tuple[str, float]], float | None]] = []
    if get("calibrate", "source") == "train":
        train += [calibration, adjustment]  # which reads the text of calibrate: rule R2
    else:
        rest.append(("Calibration, on generated text", [calibration], None))
        quantizing.append(adjustment)
    rest.append(("Quantizing", quantizing, None))
    rest.append(("Packing", [("packing", float(get("package", "seconds")))], None))
    for stage, name in (("eval_sliding", "Sliding evaluation"), ("eval_ttt", "Adapted evaluation")):
        seconds = float(get(stage, "seconds"))
        rest.append((name, [(name.lower(), seconds)], limits.eval_seconds))
    rows = [("Training and calibration", train, limits.train_seconds), *rest]
    longest = max(max(sum(s for _, s in parts), limit or 0.0) for _, parts, limit in rows)
    return [
        StageTime(
            name,
            sum(seconds for _, seconds in parts),
            limit,
            [(part, 100 * seconds / longest) for part, seconds in parts],
            None if limit is None else 100 * limit / longest,
        )
        for name, parts, limit in rows
    ]


def step_split(inputs: Inputs) -> list[tuple[str, float, float]]:
    """Return what a training step's time went into: name, milliseconds, per cent; the most first.

    Empty where it was not measured, as on a CPU.
    """
    split = inputs.metric("train.time_split_ms") or {}
    whole = sum(split.values()) or 1.0
    shares = [(name, ms, 100 * ms / whole) for name, ms in split.items() if ms > 0]
    return sorted(shares, key=lambda item: -item[1])


def error_grids(errors: Sequence[MatrixErrors]) -> list[ErrorGrid]:
    """Return the grids of both errors; the note has that of the embedding, which is no block's."""
    texts = (
        ("output_error", "Output error", "share of a product's energy, on calibration text"),
        ("relative_error", "Weight error", "‖error‖ / ‖weights‖"),
    )
    return [_grid(errors, key, title, note) for key, title, note in texts]


def _grid(errors: Sequence[MatrixErrors], key: str, title: str, note: str) -> ErrorGrid:
    cells = {(each.name, each.layer): 100 * float(getattr(each, key)) for each in errors}
    largest = max(map(abs, cells.values()), default=0.0) or 1.0
    decimals = max(0, 2 - math.floor(math.log10(largest)))  # of the largest, 3
    layers = sorted({layer for name, layer in cells if name in MATRICES})
    rows = [[cells.get((name, layer)) for name in MATRICES] for layer in layers]
    others = [(name, value) for (name, _), value in cells.items() if name not in MATRICES]
    tail = ", ".join(f"{name} {value:.{decimals}f}" for name, value in others)
    return ErrorGrid(title, f"{note}; {tail}" if tail else note, MATRICES, layers, rows, decimals)


def byte_parts(inputs: Inputs) -> list[ByteRow]:
    """Return the parts of the artifact: matrices, the largest first, then all else."""
    total, limit = (inputs.metrics.get("package", key) for key in ("bytes_total", "limit_bytes"))
    rows = []
    for part in sorted(inputs.parts, key=lambda part: (KINDS.index(part.kind), -part.bytes)):
        # an integer is an int8 before compression
        weights = part.raw_bytes if part.kind == "integers" else 0
        bits = 8 * part.bytes / weights if weights else None
        shares = 100 * part.bytes / total, 100 * part.bytes / limit
        rows.append(ByteRow(part.name, part.bytes, *shares, bits))
    return rows

"""What each part of the page shows, computed from the inputs and free of HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramgolf.metrics import need
from paramgolf.model.shapes import MATRICES
from paramgolf.report.charts import Axis
from paramgolf.report.inputs import ERRORS, PACKAGE, Inputs
from paramgolf.report.scores import SCORES, Score, chain, notes

KINDS = ("integers", "scales", "float16", "header", "code")  # of parts, in the page's order


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds against a limit (None: there is none); widths are in per cent of the longest bar."""

    name: str
    seconds: float
    limit: float | None
    parts: Sequence[tuple[str, float]]
    limit_place: float | None


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a part; per cent of the artifact and of the limit; bits a weight."""

    name: str
    bytes: int
    share: float
    of_limit: float
    bits: float | None


@dataclass(frozen=True, slots=True)
class Grid:
    """Errors by layer (rows) and matrix (columns); a cell is a per cent and a shade 0..1."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[float, float] | None]]]
    decimals: int


def scores(inputs: Inputs) -> tuple[list[Score], list[tuple[float, str]]]:
    """Return BPB after each step of the pipeline, and the labels of their axis."""
    values = [float(inputs.metrics.get(stage, key)) for _, stage, key in SCORES]
    axis = Axis.over(values, ticks=4)
    return chain(values, notes(inputs.param), axis), axis.labels()


def timings(inputs: Inputs) -> list[Timing]:
    """Return the seconds of each stage that has them; reading training text counts as training."""
    get, limits = inputs.metrics.get, inputs.limits
    train = [("training", float(get("train", "train_seconds")))]
    calibration = ("calibration", float(get("calibrate", "seconds")))
    rest: list[tuple[str, list[tuple[str, float]], float | None]] = []
    if get("calibrate", "source") == "train":
        train.append(calibration)
    else:
        rest.append(("Calibration, on generated text", [calibration], None))
    for stage, name in (("quantize", "Quantising"), ("package", "Packing")):
        rest.append((name, [(name.lower(), float(get(stage, "seconds")))], None))
    for stage, name in (("eval_sliding", "Sliding evaluation"), ("eval_ttt", "Adapted evaluation")):
        seconds = float(get(stage, "seconds"))
        rest.append((name, [(name.lower(), seconds)], limits.eval_seconds))
    rows = [("Training and calibration", train, limits.train_seconds), *rest]
    longest = max(max(sum(s for _, s in parts), limit or 0.0) for _, parts, limit in rows)
    return [
        Timing(
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
    found = [(name, ms, 100 * ms / whole) for name, ms in split.items() if ms > 0]
    return sorted(found, key=lambda item: -item[1])


def error_grids(errors: Sequence[Mapping[str, Any]]) -> list[Grid]:
    """Return the grids of both errors, in per cent; the embedding is one row of its own."""
    texts = (
        ("output_error", "Output error", "share of a product's energy, on calibration text"),
        ("relative_error", "Weight error", "‖error‖ / ‖weights‖"),
    )
    return [_grid(errors, key, title, note) for key, title, note in texts]


def _grid(errors: Sequence[Mapping[str, Any]], key: str, title: str, note: str) -> Grid:
    cells = {
        (need(e, "name", ERRORS), need(e, "layer", ERRORS)): 100 * float(need(e, key, ERRORS))
        for e in errors
    }
    highest = max(cells.values()) or 1.0
    layers = sorted({layer for name, layer in cells if name in MATRICES})

    def row(layer: int) -> list[tuple[float, float] | None]:
        values = [cells.get((name, layer)) for name in MATRICES]
        return [None if value is None else (value, value / highest) for value in values]

    rows = [(str(layer), row(layer)) for layer in layers]
    others = [(name, value) for (name, _), value in cells.items() if name not in MATRICES]
    decimals = max(0, 2 - math.floor(math.log10(highest)))  # three digits of the largest
    tail = ", ".join(f"{name} {value:.{decimals}f}" for name, value in others)
    return Grid(title, f"{note}; {tail}" if tail else note, MATRICES, rows, decimals)


def byte_parts(inputs: Inputs) -> list[Part]:
    """Return the parts of the artifact: matrices, the largest first, then all else."""
    total, limit = (inputs.metrics.get("package", key) for key in ("bytes_total", "limit_bytes"))
    parts = need(inputs.package, "parts", PACKAGE)
    kinds = [need(part, "kind", PACKAGE) for part in parts]
    order = sorted(
        range(len(parts)),
        key=lambda i: (KINDS.index(kinds[i]), -need(parts[i], "bytes", PACKAGE)),
    )
    rows = []
    for i in order:
        size, raw = (need(parts[i], key, PACKAGE) for key in ("bytes", "raw_bytes"))
        weights = raw if kinds[i] == "integers" else 0  # an integer is an int8 before compression
        bits = 8 * size / weights if weights else None
        name = need(parts[i], "name", PACKAGE)
        rows.append(Part(name, size, 100 * size / total, 100 * size / limit, bits))
    return rows

"""Charts over the training steps, of one run or of several in one frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramgolf.report.charts import Axis, Point, polyline, thin
from paramgolf.report.inputs import Log

LINES = 8  # --l0 to --l7 of the style sheet; more runs are dashed


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of an SVG polyline, in per cent of the frame, and the class of their line."""

    points: str
    line: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A place in per cent of the frame, from the left and the top; its words; its line's class."""

    left: float
    top: float
    text: str
    line: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A chart of curves and dots over the training steps."""

    title: str
    unit: str
    summary: str
    x_labels: Sequence[tuple[float, str]]
    y_labels: Sequence[tuple[float, str]]
    curves: Sequence[Curve]
    dots: Sequence[Dot]


def line_class(number: int) -> str:
    """Return the class of a run's line in the style sheet."""
    return f"l{number % LINES}" + (" dash" if number >= LINES else "")


def loss_plot(log: Log) -> Plot:
    """Return training loss as a curve and validation loss as dots, nats a token."""
    steps = [(float(r["step"]), float(r["loss"])) for r in log.steps]
    points = thin(steps)
    x = step_axis([log])
    y = Axis.over([b for _, b in points] + [r["val_loss"] for r in log.validations])
    dots = [_dot(x, y, r, "val_loss", line_class(1)) for r in log.validations]
    each = -(-len(steps) // len(points))
    mean = f", each point the mean of {each} steps" if each > 1 else ""
    summary = f"Training loss, from {steps[0][1]:.3f} to {steps[-1][1]:.3f}{mean}."
    curve = Curve(polyline(points, x, y), line_class(0))
    return Plot("Loss", "nats a token", summary, x.labels(), y.labels(), [curve], dots)


def rate_plot(log: Log) -> Plot:
    """Return the learning rate as a share of its peak."""
    points: list[Point] = [(float(r["step"]), float(r["lr"])) for r in log.steps]
    x, y = step_axis([log]), Axis.over([0.0, 1.0], ticks=2)
    summary = f"From {points[0][1]:.2f} to {points[-1][1]:.2f} of the peak rate."
    curve = Curve(polyline(thin(points), x, y), line_class(0))
    return Plot("Learning rate", "share of its peak", summary, x.labels(), y.labels(), [curve], [])


def overlaid_losses(logs: Mapping[int, tuple[str, Log]]) -> Plot:
    """Return the training losses of several runs; a key is the number of the run's line."""
    points = {
        line: thin([(float(r["step"]), float(r["loss"])) for r in log.steps])
        for line, (_, log) in logs.items()
    }
    x = step_axis([log for _, log in logs.values()])
    y = Axis.over([b for curve in points.values() for _, b in curve])
    curves = [Curve(polyline(curve, x, y), line_class(line)) for line, curve in points.items()]
    ends = (f"{name} ends at {points[line][-1][1]:.3f}" for line, (name, _) in logs.items())
    summary = f"{'; '.join(ends)}."
    return Plot("Training loss", "nats a token", summary, x.labels(), y.labels(), curves, [])


def overlaid_validations(logs: Mapping[int, tuple[str, Log]]) -> Plot | None:
    """Return validation scores by step, without those of step 0; None where no run has any."""
    found = {line: [r for r in log.validations if r["step"] > 0] for line, (_, log) in logs.items()}
    values = [r["val_bpb"] for records in found.values() for r in records]
    if not values:
        return None
    x, y = step_axis([log for _, log in logs.values()]), Axis.over(values)
    curves = [
        Curve(polyline([(r["step"], r["val_bpb"]) for r in records], x, y), line_class(line))
        for line, records in found.items()
    ]
    dots = [
        _dot(x, y, r, "val_bpb", line_class(line), f"{logs[line][0]}, ")
        for line, records in found.items()
        for r in records
    ]
    summary = "The last of a run is of its averaged weights, on the whole validation text."
    return Plot("Validation", "bits per byte", summary, x.labels(), y.labels(), curves, dots)


def step_axis(logs: Sequence[Log]) -> Axis:
    """Return an axis from step 0 to the last step of any run."""
    last = max(float(log.steps[-1]["step"]) for log in logs)
    ticks = Axis.over([0.0, last], ticks=4).ticks
    return Axis(0.0, last, tuple(tick for tick in ticks if tick <= last))


def _dot(x: Axis, y: Axis, record: Mapping[str, Any], key: str, line: str, name: str = "") -> Dot:
    scores = f"{record['val_loss']:.4f} nats, {record['val_bpb']:.4f} BPB"
    text = f"{name}step {record['step']:,}: {scores}"
    return Dot(x.percent(record["step"]), 100 - y.percent(record[key]), text, line)

"""The pictures for `dvc plots`: the page's charts as PNGs, drawn with matplotlib."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paramgolf.files import write_bytes
from paramgolf.report import views
from paramgolf.report.charts import thin
from paramgolf.report.inputs import Inputs

INK, MUTED, ACCENT, GOOD, BAD, FREE = (
    "#1c2126",
    "#626a73",
    "#1f6f8b",
    "#2f7d4f",
    "#b3472f",
    "#e3e6e8",
)


def write_pictures(inputs: Inputs, folder: Path) -> None:
    """Write loss.png, bpb.png, bytes.png and error.png; the same inputs give the same bytes."""
    drawings = {"loss": _loss, "bpb": _scores, "bytes": _bytes, "error": _errors}
    for name, draw in drawings.items():
        figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
        draw(figure, inputs)
        image = io.BytesIO()
        figure.savefig(image, format="png", metadata={"Software": None})
        write_bytes(folder / f"{name}.png", image.getvalue())


def _loss(figure: Figure, inputs: Inputs) -> None:
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    points = thin([(r["step"], r["loss"]) for r in inputs.log.steps])
    rates = thin([(r["step"], r["lr"]) for r in inputs.log.steps])
    validations = [(r["step"], r["val_loss"]) for r in inputs.log.validations]
    loss.plot(*zip(*points, strict=True), color=ACCENT, linewidth=1.4, label="training")
    if validations:
        loss.plot(*zip(*validations, strict=True), "o", color=BAD, markersize=4, label="validation")
    rate.plot(*zip(*rates, strict=True), color=ACCENT, linewidth=1.4)
    loss.set_ylabel("loss, nats a token")
    loss.legend(frameon=False)
    rate.set(xlabel="step", ylabel="rate / peak", ylim=(0, 1.05))
    for axes in (loss, rate):
        _plain(axes)


def _scores(figure: Figure, inputs: Inputs) -> None:
    axes = figure.subplots()
    rows, _ = views.scores(inputs)
    for place, row in enumerate(rows):
        if row.value is None:
            continue
        if row.change is not None:
            before = row.value - row.change
            color = BAD if row.change > 0 else GOOD
            axes.barh(place, row.change, left=before, height=0.22, color=color)
        axes.plot(row.value, place, "o", color=INK, markersize=7)
        change = "" if row.change is None else f"  ({row.change:+.4f})"
        axes.annotate(
            f"{row.value:.4f}{change}", (row.value, place - 0.22), ha="center", color=MUTED
        )
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set(xlabel="bits per byte on the validation text", ylim=(len(rows) - 0.5, -0.7))
    values = [row.value for row in rows if row.value is not None]
    low, high = min(values), max(values)
    room = 0.18 * (high - low) or 0.01
    axes.set_xlim(low - room, high + room)
    _plain(axes)


def _bytes(figure: Figure, inputs: Inputs) -> None:
    axes = figure.subplots()
    parts = views.byte_parts(inputs)
    axes.barh([part.name for part in parts], [part.bytes for part in parts], color=ACCENT)
    for place, part in enumerate(parts):
        axes.annotate(f" {part.bytes:,}", (part.bytes, place), va="center", color=MUTED)
    total, limit = (inputs.metrics.get("package", key) for key in ("bytes_total", "limit_bytes"))
    axes.set(xlabel=f"bytes; {total:,} together, limit {limit:,}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.margins(x=0.18)
    axes.invert_yaxis()
    _plain(axes)


def _errors(figure: Figure, inputs: Inputs) -> None:
    grid = views.error_grids(inputs.errors)[0]
    axes = figure.subplots()
    values = [[0.0 if cell is None else cell[0] for cell in cells] for _, cells in grid.rows]
    image = axes.imshow(values, cmap="Oranges", aspect="auto", vmin=0)
    axes.set_xticks(range(len(grid.columns)), grid.columns)
    axes.set_yticks(range(len(grid.rows)), [name for name, _ in grid.rows])
    axes.set_ylabel("layer")
    axes.set_title("error of the product on calibration text, per cent of its energy", fontsize=10)
    figure.colorbar(image, ax=axes)


def _plain(axes: Axes) -> None:
    """Take the box off a chart and let its grid recede."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=FREE, linewidth=0.7)
    axes.set_axisbelow(True)

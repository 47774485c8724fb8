"""What is drawn: training curves, scores, bytes, errors of quantizing, compared groups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from paramgolf.experiments.show import reference_name
from paramgolf.report.byte_map import ASPECT, Tile, color_of
from paramgolf.report.drawing import WIDTH, Picture, colors, line_style, picture, tip
from paramgolf.report.inputs import TrainingLog
from paramgolf.report.scores import SCORES, Score
from paramgolf.report.views import ErrorGrid

if TYPE_CHECKING:
    # which import scipy, which a run's page can spare
    from paramgolf.experiments.lab.screening import Effect
    from paramgolf.experiments.paired import Paired

Points = Sequence[tuple[float, float]]
CURVE_POINTS = 400  # more could not be seen
# in units of the treemap, whose height is 100: of a letter, of a line, and around both
LETTER, LINE, MARGIN = 1.5, 3.6, 1.0
SHADES = 65  # of a grid of errors: the darkest leaves the figures on it legible
# how much a tile of the treemap hides what is behind it, by what the bytes are
STRONG = {"scales": 0.48, "codes": 0.48}
WEAK = 0.32


def training(log: TrainingLog) -> Picture:
    """Return training loss, validation loss and learning rate over the steps."""
    steps = [(r["step"], r["loss"]) for r in log.steps]
    curve = thin(steps)
    each = -(-len(steps) // len(curve))
    mean = f", each point the mean of {each} steps" if each > 1 else ""
    words = f"Training loss, from {steps[0][1]:.3f} to {steps[-1][1]:.3f} nats per token{mean}"

    def draw(figure: Figure) -> None:
        losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        losses.plot(*zip(*curve, strict=True), label="training")
        _dots(losses, log, "val_loss", 1)
        losses.set_ylabel("loss, nats per token")
        if log.validations:
            losses.legend()
        rates.plot(*zip(*thin([(r["step"], r["lr"]) for r in log.steps]), strict=True))
        rates.set(xlabel="step", ylabel="rate / peak", ylim=(0, 1.05))

    return picture(draw, f"{words}; below it the learning rate.")


def overlaid(logs: Mapping[int, tuple[str, TrainingLog]]) -> Picture:
    """Return losses and validation scores of several runs; a key is the number of a run's line."""
    curves = {n: thin([(r["step"], r["loss"]) for r in log.steps]) for n, (_, log) in logs.items()}
    ends = (f"{name} ends at {curves[number][-1][1]:.3f}" for number, (name, _) in logs.items())

    def draw(figure: Figure) -> None:
        losses, validations = figure.subplots(1, 2)
        for number, (name, log) in logs.items():
            losses.plot(*zip(*curves[number], strict=True), **line_style(number))
            points = [(r["step"], r["val_bpb"]) for r in _validations(log)]
            if points:
                validations.plot(*zip(*points, strict=True), **line_style(number))
            _dots(validations, log, "val_bpb", number, f"{name}, ")
        losses.set(title="training loss, nats per token", xlabel="step")
        validations.set(title="validation, bits per byte", xlabel="step")

    return picture(draw, f"Training loss: {'; '.join(ends)}.", height=3.6)


def _validations(log: TrainingLog) -> list[Mapping[str, Any]]:
    """Return the validations after step 0, whose score would stretch the axis."""
    return [record for record in log.validations if record["step"] > 0]


def _dots(axes: Axes, log: TrainingLog, key: str, number: int, name: str = "") -> None:
    """Draw validations as dots that say their step and scores."""
    for i, r in enumerate(_validations(log)):
        text = f"{name}step {r['step']:,}: {r['val_loss']:.4f} nats, {r['val_bpb']:.4f} BPB"
        label = "validation" if i == 0 and not name else None
        color = line_style(number)["color"]
        axes.plot(r["step"], r[key], "o", color=color, markersize=4, gid=tip(text), label=label)


def waterfall(rows: Sequence[Score]) -> Picture:
    """Return bits per byte from step to step: a bar is a change, a dot a score."""
    known = [row.value for row in rows if row.value is not None]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            if row.value is None:
                continue
            text = f"{row.value:.4f}"
            if row.change is not None:
                color = colors()["bad" if row.change > 0 else "good"]
                axes.barh(place, -row.change, left=row.value, height=0.22, color=color)
                text += f"  ({signed(row.change)})"
            axes.plot(row.value, place, "o", color=colors()["ink"], markersize=7)
            axes.annotate(text, (row.value, place - 0.22), ha="center", color=colors()["muted"])
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set(xlabel="bits per byte on the validation text", ylim=(len(rows) - 0.5, -0.7))
        room = 0.18 * (max(known) - min(known)) or 0.01
        axes.set_xlim(min(known) - room, max(known) + room)

    chain = ", ".join(f"{row.name} {row.value:.4f}" for row in rows if row.value is not None)
    return picture(draw, f"Bits per byte: {chain}.", height=3.2)


def changes(runs: Sequence[tuple[str, Sequence[Score]]]) -> Picture:
    """Return each run's change in bits per byte since its first score, from step to step."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (_, rows) in enumerate(runs):
            known = [(i, row.value) for i, row in enumerate(rows) if row.value is not None]
            if known:
                places, values = zip(*known, strict=True)
                since = [value - values[0] for value in values]
                axes.plot(places, since, marker="o", **line_style(number))
        axes.set_xticks(range(len(SCORES)), [name for name, _, _ in SCORES])
        axes.set_ylabel("change since training, bits per byte")

    return picture(draw, "Each run's bits per byte since training, step by step.", height=3.6)


def signed(change: float) -> str:
    """Return a change of bits per byte with its sign, a real minus."""
    return f"{change:+.4f}".replace("-", "−")


def treemap(tiles: Sequence[Tile]) -> Picture:
    """Return the artifact's bytes as areas: families, and their tensors by kind inside them."""

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 100 * ASPECT), ylim=(100, 0))
        axes.set_axis_off()
        for tile in tiles:
            _draw_tile(axes, tile)

    words = "The artifact's bytes as areas, by family and tensor; the tables below say the same."
    return picture(draw, words, height=WIDTH / ASPECT)


def _draw_tile(axes: Axes, tile: Tile) -> None:
    leaf, size = tile.leaf, f"{tile.leaf.bytes:,}"
    corner = (tile.left, tile.top)
    rectangle = Rectangle(
        corner,
        tile.width,
        tile.height,
        facecolor=(*to_rgb(colors()[color_of(leaf.family)]), STRONG.get(leaf.kind, WEAK)),
        edgecolor=colors()["paper"],
        gid=tip(f"{leaf.family}, {leaf.tensor}, {leaf.kind}: {size} bytes"),
    )
    axes.add_patch(rectangle)
    lines = [f"{leaf.tensor} {leaf.kind}", size]
    if max(map(len, lines)) * LETTER + 2 * MARGIN > tile.width:
        lines = [leaf.tensor, size]
    fits = max(map(len, lines)) * LETTER + 2 * MARGIN <= tile.width
    if fits and len(lines) * LINE + 2 * MARGIN <= tile.height:
        left, top = corner
        axes.text(left + MARGIN, top + MARGIN, "\n".join(lines), va="top", fontsize=7)


def errors(grids: Sequence[ErrorGrid]) -> Picture:
    """Return the errors of quantizing by layer and matrix, in per cent, darker where larger."""

    def draw(figure: Figure) -> None:
        for axes, grid in zip(figure.subplots(1, len(grids)), grids, strict=True):
            _draw_grid(axes, grid)

    rows = max(len(grid.rows) for grid in grids)
    titles = "; ".join(f"{grid.title}, {grid.note}" for grid in grids)
    return picture(draw, f"{titles}. All in per cent.", height=0.9 + 0.27 * rows)


def _draw_grid(axes: Axes, grid: ErrorGrid) -> None:
    values = [[math.nan if cell is None else cell for cell in cells] for cells in grid.rows]
    heat = to_rgb(colors()["heat"])
    shades = ListedColormap([(*heat, share / 100) for share in range(SHADES + 1)])
    axes.pcolormesh(values, cmap=shades, vmin=0, edgecolors=colors()["paper"])
    for row, column in itertools.product(range(len(values)), range(len(grid.columns))):
        value = values[row][column]
        text = "–" if math.isnan(value) else f"{value:.{grid.decimals}f}"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8)
    axes.set_xticks([i + 0.5 for i in range(len(grid.columns))], grid.columns)
    axes.set_yticks([i + 0.5 for i in range(len(values))], [*map(str, grid.layers)])
    axes.set(title=f"{grid.title}, %", ylabel="layer", ylim=(len(values), 0))
    axes.grid(visible=False)
    axes.tick_params(length=0)


def compared(result: Mapping[str, Any]) -> Picture:
    """Return the runs of `paramgolf compare` as dots, and the mean of each group as a bar."""
    labels = [f"{group['label']} (n {len(group['scores'])})" for group in result["groups"]]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, group in enumerate(result["groups"]):
            values = group["scores"]
            axes.plot(values, [place] * len(values), "o", color=colors()["l0"], alpha=0.7)
            axes.plot(fmean(values), place, "|", color=colors()["ink"], markersize=18)
        if result["against"] is not None:
            mean = result["against"]["mean"]
            axes.axvline(mean, color=colors()["ink"], linewidth=0.8, linestyle="--")
            axes.text(mean, -0.55, reference_name(result["against"]), ha="center")
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel=result["score"], ylim=(len(labels) - 0.5, -0.5))

    return picture(draw, f"{result['score']} of each run.", height=1.2 + 0.5 * len(labels))


def differences(found: Sequence[tuple[str, Paired | Effect]], score: str) -> Picture:
    """Return each variant's or factor's mean difference as a dot, its 95 % interval as a line."""
    shown = [f"{name} {signed(pair.mean)}" for name, pair in found]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0.0, color=colors()["ink"], linewidth=0.8, linestyle="--")
        for place, (name, pair) in enumerate(found):
            if pair.low is not None and pair.high is not None:
                axes.plot([pair.low, pair.high], [place, place], color=colors()["l0"])
            axes.plot(pair.mean, place, "o", color=colors()["l0"], gid=tip(f"{name}, n {pair.n}"))
        axes.set_yticks(range(len(found)), [name for name, _ in found])
        axes.set(xlabel=f"{score}, bits per byte; left is better", ylim=(len(found) - 0.5, -0.5))

    words = f"{score.capitalize()}: {'; '.join(shown)}. Lines are 95 % intervals."
    return picture(draw, words, height=1.2 + 0.32 * len(found))


def thin(points: Points, limit: int = CURVE_POINTS) -> list[tuple[float, float]]:
    """Return at most `limit` points, each the mean of as many neighbors as that takes."""
    size = -(-len(points) // limit)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(fmean(a for a, _ in group), fmean(b for _, b in group)) for group in groups]

"""Geometry of the page's charts: ticks, positions in per cent, and curves as SVG points.

A chart is drawn in percentages of its frame: the curve is stretched, and the text beside it is
HTML, so that a narrow screen gets a narrower chart with letters of the same size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
CURVE_POINTS = 400  # more would not be seen


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis from `low` to `high`, and its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], *, ticks: int = 5, zero: bool = False) -> Axis:
        """Return an axis that holds `values` (and 0 if asked), from tick to tick.

        Ticks are 1, 2, 2.5 or 5 x 10^n apart.
        """
        low, high = min(values), max(values)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        if high <= low:
            high = low + (abs(low) or 1.0)
        rough = (high - low) / ticks
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        places = tuple(round(i * step, 12) for i in range(first, last + 1))
        return cls(places[0], places[-1], places)

    def percent(self, value: float) -> float:
        """Return where `value` lies, in per cent of the axis, rounded for the page."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def labels(self) -> list[tuple[float, str]]:
        """Return place and text of each tick; all have the same number of decimals."""
        step = self.ticks[1] - self.ticks[0]
        decimals = next(n for n in range(13) if abs(round(step, n) - step) < 1e-9 * step)
        return [(self.percent(tick), f"{tick:,.{decimals}f}") for tick in self.ticks]


def polyline(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """Return the `points` attribute of an SVG polyline in a frame of 100 x 100, y upwards."""
    return " ".join(f"{x.percent(a):g},{100 - y.percent(b):g}" for a, b in points)


def thin(points: Sequence[Point], limit: int = CURVE_POINTS) -> list[Point]:
    """Return at most `limit` points, each the mean of as many neighbours as that takes."""
    size = -(-len(points) // limit)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(_mean([a for a, _ in group]), _mean([b for _, b in group])) for group in groups]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

"""Paired runs: differences at equal seeds, their confidence interval, and how many pairs it takes.

Two runs are a pair if they have the same seed. Runs that repeat one seed differ only by rounding:
their mean counts once, and they give no interval and no p.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy.optimize import brentq
from scipy.stats import nct, t

CONFIDENCE = 0.95
POWER = 0.80  # with which an effect is shown
ASSUMED = 0.0009  # deviation of one run, bits per byte, until runs have shown it
WANTED = 0.001  # bits per byte, an effect worth knowing
MOST_SEEDS = 1000

Scores = Mapping[int, Sequence[float]]
"""Bits per byte by seed; a seed that was run again has several."""


def scores_by_seed(scores: Iterable[tuple[Any, float]]) -> Scores:
    """Gather scores, each with its seed."""
    found: dict[int, list[float]] = {}
    for seed, score in scores:
        found.setdefault(seed, []).append(score)
    return found


@dataclass(frozen=True, slots=True)
class Paired:
    """Differences of pairs, candidate minus reference, bits per byte; lower is better.

    `n` pairs of different seeds. `low`, `high` bound the mean at 95 %, `p` is two-sided; they are
    None for one pair. `replicates`: what was repeated, other seeds or the same one.
    """

    n: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    p: float | None
    replicates: Literal["none", "same seed", "other seeds"]


def paired(candidate: Scores, reference: Scores) -> Paired | None:
    """Compare runs of equal seeds; None where no seed was run of both."""
    seeds = [seed for seed in candidate if seed in reference]
    if not seeds:
        return None
    pairs = [statistics.fmean(candidate[s]) - statistics.fmean(reference[s]) for s in seeds]
    mean, n = statistics.fmean(pairs), len(pairs)
    if n == 1:
        again = max(len(candidate[seeds[0]]), len(reference[seeds[0]])) > 1
        return Paired(1, mean, None, None, None, None, "same seed" if again else "none")
    deviation = statistics.stdev(pairs)
    error = deviation / math.sqrt(n)
    reach = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p = float(2 * t.sf(abs(mean) / error, n - 1)) if error else None
    return Paired(n, mean, deviation, mean - reach, mean + reach, p, "other seeds")


def pooled_deviation(groups: Sequence[Scores]) -> tuple[float, int] | None:
    """Return the deviation of one run from seed to seed, and its degrees of freedom.

    Pooled over the variances within groups; None where no group has two seeds.
    """
    means = [[statistics.fmean(scores) for scores in group.values()] for group in groups]
    several = [values for values in means if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if not freedom:
        return None
    squares = sum((len(values) - 1) * statistics.variance(values) for values in several)
    return math.sqrt(squares / freedom), freedom


def smallest_effect(deviation: float, seeds: int) -> float | None:
    """Return the smallest difference that so many pairs show with a probability of POWER.

    A difference is shown if its 95 % interval excludes 0. `deviation` is that of one run; that of a
    pair is sqrt(2) times as large, because equal seeds do not make two runs' errors alike. None for
    one pair.
    """
    if seeds < 2:
        return None
    return shown_shift(seeds - 1) * deviation * math.sqrt(2 / seeds)


def shown_shift(freedom: float) -> float:
    """Return how many standard errors a mean must be for POWER, by Student's t."""
    critical = t.ppf((1 + CONFIDENCE) / 2, freedom)

    def lack(shift: float) -> float:
        return float(nct.sf(critical, freedom, shift)) - POWER

    return float(brentq(lack, 0.0, critical + 10.0))


def seeds_for(effect: float, deviation: float) -> int | None:
    """Return how many pairs show an effect of this size, None where MOST_SEEDS would not do."""

    def shows(seeds: int) -> bool:
        smallest = smallest_effect(deviation, seeds)
        return smallest is not None and smallest <= effect

    numbers = range(MOST_SEEDS + 1)  # from one on, all show it
    first = bisect.bisect_left(numbers, True, key=shows)
    return first if first < len(numbers) else None


@dataclass(frozen=True, slots=True)
class Power:
    """What seeds can tell apart: `deviation` of one run, measured with `freedom` or assumed (0)."""

    deviation: float
    freedom: float
    seeds: int
    smallest: float | None
    wanted: int | None

    def sentence(self) -> str:
        """Say it in a line."""
        degrees = "1 degree" if self.freedom == 1 else f"{self.freedom:g} degrees"
        known = f"measured, {degrees} of freedom" if self.freedom else "assumed"
        shown = "one seed shows no difference"
        if self.smallest is not None:
            shown = f"{self.seeds} seeds show {self.smallest:.4f} in {POWER:.0%} of cases"
        many = "no number of seeds" if self.wanted is None else f"{self.wanted} seeds"
        return (
            f"one run's deviation is {self.deviation:.4f} ({known}): {shown}; "
            f"a difference of {WANTED} takes {many}"
        )


def power(groups: Sequence[Scores], seeds: int, assumed: float = ASSUMED) -> Power:
    """Return what `seeds` pairs tell apart, by what runs scattered so far, or as assumed."""
    deviation, freedom = pooled_deviation(groups) or (assumed, 0)
    return power_of(deviation, freedom, seeds)


def power_of(deviation: float, freedom: float, seeds: int) -> Power:
    """Return what `seeds` pairs tell apart by the deviation of one run; freedom 0: assumed."""
    smallest, wanted = smallest_effect(deviation, seeds), seeds_for(WANTED, deviation)
    return Power(deviation, freedom, seeds, smallest, wanted)

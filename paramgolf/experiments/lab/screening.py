"""Screening designs: many factors judged by few runs, each of which has half of the factors on.

The runs are rows of a Hadamard matrix (Plackett and Burman 1946): of any two factors each of the
four combinations comes equally often. So each effect, the mean of the runs with a factor minus that
of those without, uses all runs, and factors do not disturb each other as long as their effects add.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from paramgolf.experiments.paired import CONFIDENCE, POWER, shown_shift

ORDERS = (4, 8, 12, 16, 20, 24, 32)  # of Hadamard matrices: runs of one seed
MOST_FACTORS = ORDERS[-1] - 1
# degrees of freedom, for an interval by the residuals: it is then expected to be no wider than
# Lenth's of any design where a quarter of the factors do something
ENOUGH = 3
FEWEST_CONTRASTS = 3  # that are not 0, as a design of four runs has

Design = Mapping[str, Collection[str]]
"""The factors that are on, by run."""
Observed = Mapping[tuple[str, int], float]
"""A figure by run and seed; what has failed, or not come yet, is missing."""
Floats = NDArray[np.float64]


def hadamard(order: int) -> NDArray[np.int64]:
    """Return a matrix (order, order) of ±1 with orthogonal rows, its first row and column ones.

    By Paley's construction from the squares modulo order - 1, a prime, or by doubling.
    """
    if order in (16, 32):
        half = hadamard(order // 2)
        return np.concatenate([np.hstack([half, half]), np.hstack([half, -half])])
    prime = order - 1
    squares = {i * i % prime for i in range(1, prime)}
    row = np.array([0, *(1 if i in squares else -1 for i in range(1, prime))])
    found = np.eye(order, dtype=np.int64)
    found[0, 1:] = 1
    found[1:, 0] = -1
    found[1:, 1:] += np.array([np.roll(row, shift) for shift in range(prime)])
    found *= found[:, :1].copy()
    found *= found[0].copy()
    return found


def order_of(factors: int, least: int = 0) -> int:
    """Return how many runs of a seed, at least `least`, judge so many factors."""
    return next(order for order in ORDERS if order > factors and order >= least)


def design(order: int) -> NDArray[np.bool_]:
    """Return which columns are on in which run (order, order - 1); none is in the first run."""
    return hadamard(order)[:, 1:] < 0


@dataclass(frozen=True, slots=True)
class Effect:
    """A figure with a factor minus without it, all others alike, of `n` runs.

    `low`, `high` bound it at 95 %; None where nothing tells how much runs scatter.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    def in_percent(self) -> Effect:
        """Return the effect on a figure, where this one is on its logarithm."""
        low, high = (None if x is None else 100 * math.expm1(x) for x in (self.low, self.high))
        return Effect(100 * math.expm1(self.mean), low, high, self.n)


@dataclass(frozen=True, slots=True)
class Scatter:
    """How far a run lies from what its factors make of it, and `by` what that is known.

    `freedom`: degrees of freedom; 0: assumed.
    """

    deviation: float
    freedom: float
    by: str

    def reach(self, error: float) -> float:
        """Return half of the 95 % interval of what has an error of so many deviations of a run."""
        return error * self.deviation * float(t.ppf((1 + CONFIDENCE) / 2, self.freedom or math.inf))


@dataclass(frozen=True, slots=True)
class Fit:
    """Effects by factor, without those that cannot be told from the runs so far."""

    effects: Mapping[str, Effect]
    scatter: Scatter | None


def fit(
    observed: Observed, on: Design, factors: Sequence[str], *, assumed: float | None = None
) -> Fit:
    """Return the effects of factors by least squares, with a level of its own for each seed.

    `assumed` is a deviation of one run for when the runs cannot show it; None: no intervals then.
    """
    seeds = [*dict.fromkeys(seed for _, seed in observed)]
    rows = [
        [*((name in on[run]) - 0.5 for name in factors), *(float(seed == one) for one in seeds)]
        for run, seed in observed
    ]
    n, terms = len(rows), len(factors) + len(seeds)
    x, y = np.array(rows, dtype=float).reshape(n, terms), np.array([*observed.values()])
    inverse = np.linalg.pinv(x, rcond=1e-9)
    # a row is one of the identity where the runs determine the term, or a mixture of terms
    told = inverse @ x
    found = inverse @ y
    freedom = n - round(np.trace(told))
    if freedom >= ENOUGH:
        deviation = math.sqrt(np.sum((y - x @ found) ** 2) / freedom)
        by = f"the residuals (degrees of freedom: {freedom})"
        scatter: Scatter | None = Scatter(deviation, freedom, by)
    else:
        scatter = _by_contrasts(observed, on, factors)
        if scatter is None and assumed is not None:
            scatter = _assumed(assumed)
    effects = {}
    for i, name in enumerate(factors):
        if np.allclose(told[i], np.eye(terms)[i]):
            effects[name] = _effect(float(found[i]), float(np.linalg.norm(inverse[i])), scatter, n)
    return Fit(effects, scatter)


def _effect(mean: float, error: float, scatter: Scatter | None, n: int) -> Effect:
    """Return an effect of `n` runs, whose standard error is `error` deviations of one run."""
    if scatter is None:
        return Effect(mean, None, None, n)
    reach = scatter.reach(error)
    return Effect(mean, mean - reach, mean + reach, n)


def _assumed(deviation: float) -> Scatter:
    return Scatter(deviation, 0, f"the assumed deviation of one run, {deviation}")


def _by_contrasts(observed: Observed, on: Design, factors: Sequence[str]) -> Scatter | None:
    """Return the scatter that the contrasts of all columns tell, None unless all runs are here.

    Most factors do little, and unused columns nothing.
    """
    seeds, order = {seed for _, seed in observed}, len(on)
    if not seeds or len(observed) < order * len(seeds):
        return None
    columns = design(order)
    runs = [[name in of_run for name in factors] for of_run in on.values()]
    if not np.array_equal(runs, columns[:, : len(factors)]):
        return None  # a design of other code
    y = np.array([statistics.fmean(observed[run, seed] for seed in seeds) for run in on])
    contrasts = (columns - 0.5).T @ y * (4 / order)
    # exactly 0 is what a factor does to runs that share a training, and tells of no scatter
    contrasts = contrasts[contrasts != 0]
    if len(contrasts) < FEWEST_CONTRASTS:
        return None
    freedom = len(contrasts) / 3
    deviation = pseudo_error(contrasts) * math.sqrt(len(observed)) / 2
    by = (
        f"Lenth's pseudo standard error of {len(contrasts)} contrasts "
        f"(degrees of freedom: {freedom:.3g})"
    )
    return Scatter(deviation, freedom, by)


def pseudo_error(contrasts: Floats) -> float:
    """Return the standard error of contrasts of which most are nothing but noise (Lenth 1989)."""
    sizes = np.abs(contrasts)
    first = 1.5 * np.median(sizes)
    small = sizes[sizes < 2.5 * first]
    return 1.5 * float(np.median(small)) if small.size else 0.0


@dataclass(frozen=True, slots=True)
class ScreenPower:
    """What a whole screening shows: `deviation` of one run, `freedom` as of Scatter."""

    deviation: float
    freedom: float
    runs: int
    smallest: float

    def sentence(self) -> str:
        """Say it in a line."""
        known = "by these runs" if self.freedom else "assumed"
        return (
            f"one run's deviation is {self.deviation:.4f} ({known}): all {self.runs} runs show "
            f"an effect of {self.smallest:.4f} in {POWER:.0%} of cases"
        )


def screen_power(
    order: int, factors: int, seeds: int, deviation: float, freedom: float
) -> ScreenPower:
    """Return what a whole design shows of so many factors by the deviation of one run."""
    left = (order - 1) * seeds - factors
    shift = shown_shift(left if left >= ENOUGH else (order - 1) / 3)
    runs = order * seeds
    return ScreenPower(deviation, freedom, runs, shift * deviation * 2 / math.sqrt(runs))


@dataclass(frozen=True, slots=True)
class Screening:
    """What a plan's factors do, to a score and to the speed of training (in per cent)."""

    factors: Sequence[Mapping[str, Any]]
    """As the plan has them: `name`, `reason` and `predicted`."""
    score: Fit
    speed: Mapping[str, Effect]
    on: Design
    runs: int
    power: ScreenPower
    assumed: float
    """A deviation of one run, as the plan says."""

    def numbers(self, run: str) -> str:
        """Return the numbers of the factors that are on in a run, as tables count them."""
        on = self.on[run]
        return " ".join(str(i) for i, one in enumerate(self.factors, 1) if one["name"] in on)

    def notes(self) -> Iterator[str]:
        """Yield what the effects are of, and what their intervals are by."""
        if self.runs < self.power.runs:
            yield f"effects are of {self.runs} of {self.power.runs} runs"
        names = [one["name"] for one in self.factors]
        if untold := [name for name in names if name not in self.score.effects]:
            yield f"effects that these runs cannot tell yet: {'; '.join(untold)}"
        if self.score.effects and self.score.scatter is not None:
            yield f"intervals of effects are by {self.score.scatter.by}"
        known = _assumed(self.assumed)
        if self.runs == self.power.runs and self.score.scatter != known:
            reach = known.reach(2 / math.sqrt(self.runs))
            yield f"by {known.by}, they would be ± {reach:.4f}"

    def as_json(self) -> dict[str, Any]:
        """Return the effects for programs; None stands for what cannot be told."""
        plain = {
            name: {one: asdict(effect) for one, effect in effects.items()}
            for name, effects in (("score", self.score.effects), ("speed_percent", self.speed))
        }
        factors = [
            {
                **{key: one[key] for key in ("name", "reason", "predicted")},
                **{key: effects.get(one["name"]) for key, effects in plain.items()},
            }
            for one in self.factors
        ]
        return {"notes": [*self.notes()], "factors": factors}


def screening(plan: Mapping[str, Any], scores: Observed, speeds: Observed, seeds: int) -> Screening:
    """Return what a plan, as the results have it, has found of its factors.

    `speeds` are in tokens a second; `seeds` are those of the plan, each counted once.
    """
    factors, variants = plan["factors"], plan["variants"]
    on = {one["name"]: one.get("factors", ()) for one in variants}
    names = [one["name"] for one in factors]
    logarithms = {run: math.log(speed) for run, speed in speeds.items() if speed > 0}
    speed = fit(logarithms, on, names).effects
    score = fit(scores, on, names, assumed=plan["deviation"])
    assert score.scatter is not None
    return Screening(
        factors=factors,
        score=score,
        speed={name: effect.in_percent() for name, effect in speed.items()},
        on=on,
        runs=len(scores),
        power=screen_power(
            len(on), len(names), seeds, score.scatter.deviation, score.scatter.freedom
        ),
        assumed=plan["deviation"],
    )

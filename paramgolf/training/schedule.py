"""Schedules as pure functions of where training stands."""

from __future__ import annotations

from dataclasses import dataclass

from paramgolf.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Point:
    """Where training stands before a step: steps done, and the share of the budget that is spent.

    `steps_left` is known with a step budget and estimated from the mean step under a time budget.
    """

    step: int
    fraction: float
    steps_left: float


def point(config: TrainConfig, step: int, elapsed_seconds: float) -> Point:
    """Return where training stands; of a step and a time budget the one nearer its end rules."""
    fraction, left = 0.0, float("inf")
    if config.steps is not None:
        fraction, left = step / config.steps, float(config.steps - step)
    if config.budget_seconds is not None:
        budget = config.budget_seconds - config.reserve_seconds
        fraction = max(fraction, elapsed_seconds / budget)
        if step:
            left = min(left, (budget - elapsed_seconds) * step / max(elapsed_seconds, 1e-9))
    return Point(step, min(fraction, 1.0), max(left, 0.0))


def lr_multiplier(config: TrainConfig, at: Point) -> float:
    """Return the share of the peak learning rate: 1, then a linear fall over the warmdown."""
    if config.warmdown == 0:
        return 1.0
    left = 1 - at.fraction if config.warmdown_unit == "fraction" else at.steps_left
    return max(config.min_lr, min(1.0, left / config.warmdown))


def decay_multiplier(config: TrainConfig, at: Point) -> float:
    """Return the share of the matrices' weight decay: 1, then a linear fall (#1729)."""
    start, floor = config.decay_taper_start, config.decay_taper_share
    return 1 - (1 - floor) * max(0.0, (at.fraction - start) / (1 - start))


def muon_momentum(config: TrainConfig, step: int) -> float:
    """Return Muon's momentum: a linear rise over the first steps."""
    if step >= config.muon_momentum_steps:
        return config.muon_momentum
    share = step / config.muon_momentum_steps
    return config.muon_momentum_start + share * (config.muon_momentum - config.muon_momentum_start)


def ema_decay(config: TrainConfig, step: int) -> float:
    """Return how much of the average is kept at `step`; with warm-up at most (1 + s) / (10 + s)."""
    if not config.ema_warmup:
        return config.ema_decay
    return min(config.ema_decay, (1 + step) / (10 + step))

"""Schedules: pure functions of where training stands.

With f the share of the budget that is spent, s the steps done and r the steps left:

    rate      peak * max(min_lr, min(1, (1 - f) / warmdown))    warmdown a fraction
              peak * max(min_lr, min(1, r / warmdown))          warmdown in steps
    decay     matrix_decay * (1 - (1 - share) * max(0, f - start) / (1 - start))
    momentum  start + (momentum - start) * min(1, s / steps)
    weights   w + (last - w) * max(0, f - at) / (1 - at), of the averages that momentum consists of
    second    weight * max(0, 1 - f / until), of the second token's loss
    average   e <- d e + (1 - d) w, d = ema_decay or another group's, with warm-up
              min(d, (1 + s) / (10 + s))

The budget is steps, or seconds, or both: the one nearer its end rules. Under a budget of seconds r
is an estimate, so a warmdown in steps bends as the time of a step does.
"""

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
    """Return where training stands after `step` steps and `elapsed_seconds` on its clock."""
    fraction, left = 0.0, float("inf")
    if config.steps is not None:
        fraction, left = step / config.steps, float(config.steps - step)
    if config.budget_seconds is not None:
        # the reserve is calibration's, which reads training text and so counts as training
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
    """Return the share of the matrices' weight decay: 1, then a linear fall (pg#1729)."""
    start, floor = config.decay_taper_start, config.decay_taper_share
    return 1 - (1 - floor) * max(0.0, (at.fraction - start) / (1 - start))


def muon_momentum(config: TrainConfig, step: int) -> float:
    """Return Muon's momentum, which rises linearly over the first steps.

    The first gradients are large and soon point elsewhere; a momentum of 0.99 would carry each of
    them on for a hundred steps.
    """
    if step >= config.muon_momentum_steps:
        return config.muon_momentum
    share = step / config.muon_momentum_steps
    return config.muon_momentum_start + share * (config.muon_momentum - config.muon_momentum_start)


def second_token_weight(config: TrainConfig, at: Point) -> float:
    """Return the weight of the second token's loss.

    Early on it tells what a text is about; at the end it would pull the logits away from the
    chances of the next token (github.com/KellerJordan/modded-nanogpt, pull request 178).
    """
    return config.second_token_weight * max(0.0, 1 - at.fraction / config.second_token_until)


def ema_decay(config: TrainConfig, step: int, decay: float) -> float:
    """Return d, how much of averaged weights is kept at `step`; `decay` is what their group has.

    The average remembers 1 / (1 - d) steps, and begins as the random start. A run that is not much
    longer than this would keep some of the start; with warm-up the memory grows with training, as
    (10 + s) / 9 steps, until it has its length.
    """
    return min(decay, (1 + step) / (10 + step)) if config.ema_warmup else decay

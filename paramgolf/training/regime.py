"""What holds at a point of training: the sizes of the batch, and the phase of recurrence.

Both change at fractions of the budget (or recurrence at steps), each on its own. What is compiled,
captured and counted depends on the pair.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from paramgolf.model.config import ModelConfig, Order
from paramgolf.training.config import BatchSizes, TrainConfig
from paramgolf.training.schedule import Point


class Regime(NamedTuple):
    """A pair of batch sizes and a phase of recurrence, an index into the model's orders."""

    sizes: BatchSizes
    phase: int

    def order(self, model: ModelConfig) -> Order:
        """Return the layers that a pass runs, in their order."""
        return model.orders[self.phase]


def regime_at(model: ModelConfig, config: TrainConfig, at: Point) -> Regime:
    """Return the regime at a point of training."""
    return Regime(config.sizes_at(at.fraction), model.phase_at(at.fraction, at.step))


def regimes(model: ModelConfig, config: TrainConfig) -> set[Regime]:
    """Return every regime that a run can come to: all that must be compiled beforehand."""
    if model.recurrence_unit == "step":  # which sizes hold at a step depends on the speed
        pairs = itertools.product(config.batch_sizes, range(len(model.orders)))
        return {Regime(sizes, phase) for sizes, phase in pairs}
    turns = [sizes.at for sizes in config.batch_sizes] + [phase.at for phase in model.recurrence]
    return {regime_at(model, config, Point(0, at, 0.0)) for at in turns}

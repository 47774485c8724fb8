"""How far training gets in its budget: steps, tokens and seconds, phase by phase."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from paramgolf.estimate.devices import Device
from paramgolf.model.config import ModelConfig
from paramgolf.model.flops import training_flops
from paramgolf.training.config import TrainConfig
from paramgolf.training.schedule import point

FP8_SHARE = 0.91  # of a step's time with train.precision fp8_mlp: pr1493 and best on an H100


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of training in which the layer order and the batch stay the same."""

    phase: int  # of recurrence: an index into ModelConfig.orders
    sequence_length: int
    batch_tokens: int
    steps: int
    step_seconds: float

    @property
    def tokens(self) -> int:
        """Tokens that its steps read."""
        return self.steps * self.batch_tokens

    @property
    def seconds(self) -> float:
        """Seconds that its steps take."""
        return self.steps * self.step_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Devices that train together; compilation and the start of processes are not counted."""

    device: Device
    count: int

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.device.peak_flops * self.device.utilisation * self.count

    def step_seconds(self, flops: float) -> float:
        """Return the seconds of an optimizer step of `flops` operations."""
        return max(flops / self.rate, self.device.shortest_step)


def dollars(gpu_seconds: float, price: float) -> float:
    """Return what seconds of GPUs cost at a price of a GPU's hour."""
    return gpu_seconds / 3600 * price


def stretches(
    model: ModelConfig, train: TrainConfig, vocab_size: int, machine: Machine
) -> list[Stretch]:
    """Return what training does until its budget of steps or seconds is spent."""
    done: list[Stretch] = []
    short = train.precision == "fp8_mlp" and machine.device.fused_kernels
    share = FP8_SHARE if short else 1.0
    step, seconds = 0, 0.0
    while (at := point(train, step, seconds)).fraction < 1:
        phase = model.phase_at(at.fraction, step)
        sizes = train.sizes_at(at.fraction)
        flops = training_flops(model, vocab_size, model.orders[phase], sizes.sequence_length)
        step_seconds = machine.step_seconds(share * flops * sizes.batch_tokens)
        ends = [math.ceil(end) for end in _ends(model, train, step, seconds, step_seconds)]
        steps = max(1, min(end for end in ends if end > 0))
        length, tokens = sizes.sequence_length, sizes.batch_tokens
        done.append(Stretch(phase, length, tokens, steps, step_seconds))
        step, seconds = step + steps, seconds + steps * step_seconds
    return done


def _ends(
    model: ModelConfig, train: TrainConfig, step: int, seconds: float, step_seconds: float
) -> Iterator[float]:
    """Yield in how many steps from here each later phase begins, and the budget ends."""
    by_fraction = model.recurrence_unit == "fraction"
    fractions = {1.0, *(sizes.at for sizes in train.curriculum)}
    for phase in model.recurrence:
        if by_fraction:
            fractions.add(phase.at)
        else:
            yield phase.at - step
    for fraction in fractions:
        if train.steps is not None:
            yield fraction * train.steps - step
        if train.budget_seconds is not None:
            budget = train.budget_seconds - train.reserve_seconds
            yield (fraction * budget - seconds) / step_seconds

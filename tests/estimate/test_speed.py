"""Estimated steps and seconds against the training loop's, and against published ones."""

from __future__ import annotations

import dataclasses

import pytest

from paramgolf.estimate.devices import DEVICES
from paramgolf.estimate.speed import Machine, Stretch, stretches
from paramgolf.model.config import ModelConfig, RecurrencePhase
from paramgolf.model.flops import forward_flops, training_flops
from paramgolf.training.config import BatchSizes, TrainConfig
from paramgolf.training.schedule import point

VOCAB = 1000
H100 = DEVICES["H100"]


def by_stepping(
    model: ModelConfig, train: TrainConfig, machine: Machine
) -> list[tuple[int, int, int]]:
    """Return (phase, batch tokens, steps) of each stretch, one step at a time as train does."""
    seconds, found = 0.0, []
    step = 0
    while (at := point(train, step, seconds)).fraction < 1:
        phase = model.phase_at(at.fraction, at.step)
        sizes = [sizes for sizes in train.batch_sizes if sizes.at <= at.fraction][-1]
        flops = training_flops(model, VOCAB, model.orders[phase], sizes.sequence_length)
        seconds += machine.step_seconds(flops * sizes.batch_tokens)
        step += 1
        if found and found[-1][:2] == (phase, sizes.batch_tokens):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((phase, sizes.batch_tokens, 1))
    return found


CURRICULUM = (BatchSizes(at=0.3, batch_tokens=8192, sequence_length=512),)


@pytest.mark.parametrize(
    "train",
    [
        {"steps": 97},
        {"steps": None, "budget_seconds": 3.0, "reserve_seconds": 0.25},
        {"steps": 97, "budget_seconds": 1.5},
        {"steps": 97, "curriculum": CURRICULUM},
        {"steps": None, "budget_seconds": 3.0, "curriculum": CURRICULUM},
    ],
)
@pytest.mark.parametrize("unit", ["fraction", "step"])
def test_stretches_are_the_training_loops(train, unit, sample, tiny_model):
    """The two thresholds are 0.4 and 0.6 of the budget, or steps 5 and 12."""
    orders = ((0, 1, 2, 1, 2, 3), (0, 1, 2, 1, 2, 1, 2, 3))
    points = (0.4, 0.6) if unit == "fraction" else (5, 12)
    phases = tuple(RecurrencePhase(at=at, order=o) for at, o in zip(points, orders, strict=True))
    model = tiny_model(recurrence=phases, recurrence_unit=unit)
    config = dataclasses.replace(sample.train, micro_batch_tokens=8192, **train)
    machine = Machine(device=dataclasses.replace(DEVICES["cpu"], peak_flops=1e11), count=1)
    found = stretches(model, config, VOCAB, machine)
    assert [(s.phase, s.batch_tokens, s.steps) for s in found] == by_stepping(
        model, config, machine
    )
    assert len(found) >= 2


def test_a_first_layer_without_attention_costs_none(tiny_model):
    """Layer 0 runs twice here: two passes' products of q, k, v, o and their attention are saved."""
    model = tiny_model(first_attention=True)
    without = dataclasses.replace(model, first_attention=False)
    order, length = (0, 1, 0, 2, 3), 64
    kv_width = model.kv_heads * model.head_dim
    attention = 2 * (2 * model.width**2 + 2 * model.width * kv_width) + 2 * length * model.width
    costs = [forward_flops(config, VOCAB, order, length) for config in (model, without)]
    assert costs[0] - costs[1] == 2 * attention


def test_steps_of_1493_are_near_those_published(base):
    published = dataclasses.replace(DEVICES["H100"], utilisation=0.27)  # of #1218 to #1493
    found = stretches(base.model, base.train, 8192, Machine(device=published, count=8))
    assert sum(part.steps for part in found) == pytest.approx(4554, rel=0.05)
    assert [part.phase for part in found] == [0, 1]


def test_a_step_takes_no_less_than_the_launch_of_its_kernels(sample):
    train = dataclasses.replace(sample.train, steps=250, curriculum=())
    found = stretches(sample.model, train, 1024, Machine(device=DEVICES["H100"], count=8))
    assert {part.step_seconds for part in found} == {DEVICES["H100"].shortest_step}
    assert sum(part.steps for part in found) == 250
    assert found[0] == Stretch(0, train.sequence_length, train.batch_tokens, 125, 0.010)


@pytest.mark.parametrize(("name", "faster"), [("H100", True), ("cpu", False)])
def test_fp8_saves_time_where_there_are_kernels_for_it(name, faster, sample, tiny_model):
    machine = Machine(device=DEVICES[name], count=1)
    train = dataclasses.replace(sample.train, steps=10, batch_tokens=2**24)
    seconds = [
        sum(s.seconds for s in stretches(tiny_model(), one, VOCAB, machine))
        for one in (train, dataclasses.replace(train, precision="fp8_mlp"))
    ]
    assert (seconds[1] < seconds[0]) == faster

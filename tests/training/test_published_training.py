"""Ten steps of the published optimizers, their averages, and their schedules."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from process_case import ALONE
from published_case import (
    DOCUMENT_TOKENS,
    SYSTEMS,
    distance,
    facts,
    given,
    network_of,
    shrunk,
    tensors,
)

from paramgolf.model.network import Pass
from paramgolf.model.shapes import MATRICES, TABLES
from paramgolf.recipes import Params
from paramgolf.training.schedule import Point, lr_multiplier, muon_momentum, point
from paramgolf.training.state import TrainState

STEPS, RECURRENCE_BEGINS = 10, 5
SCHEDULE = 1e-12
# relative to the largest number: of matrices, of tables, of others. A change of the start by 1e-7
# moves them by up to half as much: rows of tables get whole steps from the rounding of gradients
# near 0
TOLERANCES = {
    "step1": (1e-5, 5e-4, 3e-5),
    "step10": (3e-4, 2e-3, 3e-4),
    "average": (2e-5, 2e-5, 2e-5),
}
LOSS, UNSTEADY_LOSS = 5e-5, {"pr1499": 3e-4}


def at(params: Params, name: str, step: int) -> Point:
    """A point of training with the momentum of `step` and the multiplier that was recorded."""
    known = tensors(name, "optimizer")
    multiplier, config = known["multipliers"][step].item(), params.train
    if "fractions" in known:
        return Point(step, known["fractions"][step].item(), float("inf"))
    left = config.warmdown * multiplier
    return Point(step, 1 - left if config.warmdown_unit == "fraction" else 0.0, left)


@pytest.mark.parametrize("name", SYSTEMS)
def test_ten_steps_and_the_average_are_the_published_ones(name):
    params = shrunk(name)
    known = tensors(name, "optimizer")
    weights = dict(given(name, "network", "weights."))
    if "softcaps" in weights:
        weights["softcaps"] = torch.full((2,), 30.0)  # where they begin and stay
    network = network_of(params, weights)
    state = TrainState(network, params.train, ALONE)
    for step in range(STEPS):
        if step == RECURRENCE_BEGINS:
            state.enter_phase(1)
        tokens, targets = known["tokens"][step], known["targets"][step]
        longest = DOCUMENT_TOKENS.get(name)
        if longest is not None:
            tokens, targets = tokens.view(1, -1), targets.view(1, -1)
        order = params.model.orders[0 if step < RECURRENCE_BEGINS else -1]
        state.zero_grad()
        loss = network.nll(tokens, targets, Pass(order, document_tokens=longest)).mean()
        loss.backward()
        assert abs(loss.item() - known["loss"][step].item()) < UNSTEADY_LOSS.get(name, LOSS), step
        squares = sum(p.grad.square().sum() for p in network.parameters() if p.grad is not None)
        assert squares.sqrt().item() == pytest.approx(known["grad_norm"][step].item(), rel=1e-3)
        point_of_step = at(params, name, step)
        multiplier = state.step(point_of_step)
        assert multiplier == pytest.approx(known["multipliers"][step].item(), abs=1e-6)
        momentum = muon_momentum(params.train, step)
        assert momentum == pytest.approx(known["momentum"][step].item(), abs=1e-6)
        if step + 1 in (1, 10):
            compare(name, f"step{step + 1}", dict(network.named_parameters()))
    compare(name, "average", state.average)


def compare(name: str, when: str, found: dict[str, torch.Tensor]) -> None:
    matrices, tables, others = TOLERANCES[when]
    for key, expected in given(name, "optimizer", f"{when}.").items():
        tolerance = matrices if key in MATRICES else tables if key in TABLES else others
        assert distance(found[key], expected) < tolerance, (when, key)


def test_late_rounding_of_pr1499_is_the_published_one():
    """The MLP at 5 bits, all other matrices at 6, bigram_proj among them."""
    params, known = shrunk("pr1499"), tensors("pr1499", "qat")
    network = network_of(params, given("pr1499", "network", "weights."))
    state = TrainState(network, params.train, ALONE)
    above, below = (Point(0, 0.0, share * params.train.warmdown) for share in (0.51, 0.49))
    assert state.network_at(above) is network
    rounded, options = state.network_at(below), Pass(params.model.orders[-1])
    assert distance(rounded.logits(known["tokens"], options), known["after.logits"]) < 1e-5
    loss = rounded.nll(known["tokens"], known["targets"], options).mean()
    assert abs(loss.item() - known["after.loss"].item()) < 2e-5
    loss.backward()
    for key, expected in given("pr1499", "qat", "after.grad.").items():
        tolerance = 5e-4 if expected.numel() == 1 else 5e-5
        assert distance(network.get_parameter(key).grad, expected) < tolerance, key
    assert rounded.backend.fake_quant is not None
    for key in ("q", "up", "bigram_proj"):
        expected = known[f"weight.{key}" if key == "bigram_proj" else f"weight.{key}.3"]
        found = rounded.backend.fake_quant(key, network.get_parameter(key))
        assert distance(found if key == "bigram_proj" else found[3], expected) < 1e-6


@pytest.mark.parametrize("name", SYSTEMS)
def test_schedules_are_the_published_ones(name):
    params = shrunk(name)
    known = facts(name, "schedule")
    for run in known.get("runs", [known]):
        config = dataclasses.replace(
            params.train, budget_seconds=run["budget_ms"] / 1000, reserve_seconds=0.0
        )
        decays = (config.matrix_decay, config.token_decay, config.scalar_decay)
        phases = set()
        for row in run["rows"]:
            row = dict(zip(run["columns"], row, strict=True))
            now = point(config, row["step"], row["elapsed_ms"] / 1000)
            assert abs(lr_multiplier(config, now) - row["lr_multiplier"]) < SCHEDULE
            assert abs(muon_momentum(config, now.step) - row["muon_momentum"]) < SCHEDULE
            assert decays == tuple(v for key, v in row.items() if key.endswith("weight_decay"))
            begun = params.model.phase_at(now.fraction, now.step) > 0
            phases.add(begun)
            first = run["recurrence_from_step"]
            assert begun == (first is not None and row["step"] >= first)
        assert phases == ({False} if first is None else {False, True})

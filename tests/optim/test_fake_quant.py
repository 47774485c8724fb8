"""Late quantisation-aware training rounds what the forward pass sees; gradients pass."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from process_case import ALONE

from paramgolf.model.backend import Backend
from paramgolf.model.network import Network, Pass
from paramgolf.optim.fake_quant import soft_round, straight_through
from paramgolf.training.schedule import point
from paramgolf.training.state import TrainState


def weights() -> torch.Tensor:
    return torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)


def test_rounded_rows_lie_on_their_grid_and_the_gradient_is_one():
    w = weights()
    rounded = straight_through(w, bits=4)
    steps = rounded / (w.detach().abs().amax(-1, keepdim=True) / 7)
    torch.testing.assert_close(steps, steps.round())
    rounded.sum().backward()
    assert torch.equal(w.grad, torch.ones_like(w))


def test_soft_rounding_sharpens_to_hard_rounding():
    w = weights()
    hard = straight_through(w, bits=6).detach()
    errors = [float((soft_round(w, 6, s) - hard).abs().mean()) for s in (1.0, 16.0, 1000.0)]
    assert errors[0] > errors[1] > errors[2]
    soft_round(w, 6, 16.0).sum().backward()
    assert w.grad.abs().sum() > 0


@pytest.mark.parametrize("compiled", [False, True])
def test_it_acts_when_the_rate_is_low_and_only_then(tiny_model, sample, compiled):
    config = dataclasses.replace(sample.train, steps=100, warmdown=1.0, qat_below=0.2, qat_bits=2)
    network = Network(tiny_model(), 64, seed=1)
    if compiled:
        as_graphs = torch.compile(network.backend.block, backend="eager")
        network = network.with_backend(Backend(block=as_graphs))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1)
    state = TrainState(network, config, ALONE)
    tokens = torch.arange(4, 40)[None]
    options = Pass(network.config.orders[0])
    plain = network.logits(tokens, options)
    early, late = (state.network_at(point(config, step, 0.0)) for step in (10, 90))
    assert torch.equal(early.logits(tokens, options), plain)
    assert not torch.equal(late.logits(tokens, options), plain)
    assert torch.equal(state.network.logits(tokens, options), plain)


@pytest.mark.parametrize("rounding", ["ste", "soft"])
def test_the_mlp_has_bits_of_its_own(tiny_model, sample, rounding):
    config = dataclasses.replace(sample.train, steps=100, warmdown=1.0, min_lr=0.0, qat_below=0.2)
    config = dataclasses.replace(config, qat_rounding=rounding, qat_bits=5, qat_mlp_bits=3)
    state, w = TrainState(Network(tiny_model(), 64), config, ALONE), weights()
    # half way: of the sharpness 1 to 16, in logarithms
    late = state.network_at(point(config, 90, 0.0)).backend.fake_quant
    for name, bits in (("q", 5), ("up", 3), ("down", 3)):
        expected = straight_through(w, bits) if rounding == "ste" else soft_round(w, bits, 4.0)
        torch.testing.assert_close(late(name, w), expected)


def test_stochastic_weight_average_is_applied(tiny_model, sample):
    config = dataclasses.replace(
        sample.train, steps=10, warmdown=1.0, average="swa", swa_every=2, swa_below=0.5
    )
    network = Network(tiny_model(), 64, seed=1)
    state = TrainState(network, config, ALONE)
    taken = []
    for step in range(10):
        state.zero_grad()
        network.nll(
            torch.arange(4, 20)[None], torch.arange(5, 21)[None], Pass((0, 1, 2, 3))
        ).mean().backward()
        state.step(point(config, step, 0.0))
        if step in (6, 8):  # the rate is below half of its peak, on even steps
            taken.append(network.get_parameter("up").detach().clone())
    state.load_average()
    torch.testing.assert_close(network.get_parameter("up").detach(), (taken[0] + taken[1]) / 2)

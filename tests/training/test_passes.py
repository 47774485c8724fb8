"""The gradient of a step does not depend on its micro-batches, nor on the warm-up before it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from process_case import ALONE
from recipe_case import moved

from paramgolf.data.token_set import open_tokens
from paramgolf.model.network import Network, Pass
from paramgolf.training.batches import Batches
from paramgolf.training.config import BatchSizes
from paramgolf.training.passes import Passes
from paramgolf.training.regime import Regime, regime_at, regimes
from paramgolf.training.schedule import Point, point
from paramgolf.training.state import TrainState

SIZES = {"batch_tokens": 256, "micro_batch_tokens": 128, "sequence_length": 32}


@pytest.fixture
def make(tokens_folder, tiny_model, sample):
    """Make the passes of a run, its state and its first regime."""

    def call(**changes: object) -> tuple[Passes, TrainState, Regime]:
        model = tiny_model()
        config = dataclasses.replace(sample.train, steps=10, **{**SIZES, **changes})
        stream = open_tokens(tokens_folder).train()
        batches = Batches(stream, config, ALONE, config.micro_batch_tokens)
        state = TrainState(Network(model, 64, seed=1), config, ALONE)
        state.zero_grad()
        regime = regime_at(model, config, point(config, 0, 0.0))
        return Passes(model, config, batches, ALONE), state, regime

    return call


def test_micro_batches_do_not_change_the_gradient(make):
    found = []
    for tokens in (32, 256):
        passes, state, regime = make(micro_batch_tokens=tokens)
        loss = passes.gradient(state.network, regime, 0)
        found.append((float(loss), [p.grad for p in state.network.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        if one.abs().max() > 0:
            torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


def test_fp8_moves_training_passes_alone_and_by_no_more_than_its_rounding(make):
    found, scores = {}, []
    text = torch.randint(2, 64, (2, 33), generator=torch.Generator().manual_seed(0))
    for precision in ("bf16", "fp8_mlp"):
        passes, state, regime = make(precision=precision)
        moved(state.network)
        loss = passes.gradient(state.network, regime, 0)
        found[precision] = (float(loss), [p.grad for p in state.network.parameters()])
        order = regime.order(state.network.config)
        scores.append(state.network.nll(text[:, :-1], text[:, 1:], Pass(order)))
    assert torch.equal(*scores)
    (plain, gradients), (short, short_gradients) = found["bf16"], found["fp8_mlp"]
    assert 0 < abs(plain - short) < 1e-2 * plain
    norms = [torch.stack([g.norm() for g in gs]).norm() for gs in (gradients, short_gradients)]
    assert float(norms[1] / norms[0]) == pytest.approx(1, abs=0.1)


def test_warm_up_leaves_weights_moments_and_batches_untouched(make):
    (warm, warm_state, regime), (cold, cold_state, _) = make(), make()
    warm.warm_up(warm_state)
    for p, q in zip(warm_state.network.parameters(), cold_state.network.parameters(), strict=True):
        assert torch.equal(p, q)
        assert not p.grad.any()
    for passes, state in ((warm, warm_state), (cold, cold_state)):
        passes.gradient(state.network, regime, 0)
        state.step(Point(0, 0.0, 10.0))
    for p, q in zip(warm_state.network.parameters(), cold_state.network.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("later", "unit", "expected"),
    [
        ((), "fraction", [(0, 0), (0, 1)]),
        ((0.5,), "fraction", [(0, 0), (1, 1)]),
        ((0.2, 0.6), "fraction", [(0, 0), (1, 0), (1, 1), (2, 1)]),
        ((0.5,), "step", [(0, 0), (0, 1), (1, 0), (1, 1)]),
    ],
)
def test_only_regimes_that_a_run_comes_to_are_compiled(sample, tiny_model, later, unit, expected):
    """Recurrence begins at a half: sizes that begin later, or end before, meet one order alone."""
    curriculum = tuple(BatchSizes(at=at, batch_tokens=512, sequence_length=64) for at in later)
    config = dataclasses.replace(sample.train, curriculum=curriculum)
    model = tiny_model(recurrence_unit=unit)
    found = [(config.batch_sizes.index(r.sizes), r.phase) for r in regimes(model, config)]
    assert sorted(found) == expected

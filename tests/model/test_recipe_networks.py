"""The network of every recipe: first loss, gradients, no look ahead or into another document."""

from __future__ import annotations

import math

import pytest
import torch
from recipe_case import different, moved, narrow_recipe

from paramgolf.data.special_tokens import BOS
from paramgolf.model.config import ModelConfig
from paramgolf.model.network import Network, Pass
from paramgolf.model.shapes import FROZEN

VOCAB = 97


@pytest.fixture(params=[name for name in different("model") if name != "sample"])
def config(request) -> ModelConfig:
    """A recipe's network, narrower: the layers, orders and options are its own."""
    return narrow_recipe(request.param).model


@pytest.fixture
def network(config) -> Network:
    return Network(config, VOCAB, seed=1)


def text() -> torch.Tensor:
    return torch.randint(4, VOCAB, (1, 33), generator=torch.Generator().manual_seed(3))


def test_the_first_loss_is_a_uniform_guess(config, network):
    for order in config.orders:
        loss = network.nll(text()[:, :-1], text()[:, 1:], Pass(order)).mean()
        assert abs(loss.item() - math.log(VOCAB)) < 0.05


def test_every_parameter_that_the_last_order_uses_learns(config, network):
    moved(network).nll(text()[:, :-1], text()[:, 1:], Pass(config.orders[-1])).mean().backward()
    silent = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == set(FROZEN) & set(dict(network.named_parameters()))


def test_a_future_token_moves_no_past_logit(config, network):
    moved(network)
    tokens = text()
    changed = tokens.clone()
    changed[0, 20] = 5
    for order in config.orders:
        with torch.no_grad():
            before, after = (network.logits(x, Pass(order)) for x in (tokens, changed))
        assert torch.equal(before[:, :20], after[:, :20])
        assert not torch.equal(before[:, 20:], after[:, 20:])


def test_another_document_moves_nothing(config, network):
    moved(network)
    tokens = text()
    tokens[0, 12] = BOS
    changed = tokens.clone()
    changed[0, :12] = 7
    options = Pass(config.orders[-1], document_tokens=33)
    with torch.no_grad():
        before, after = (network.logits(x, options) for x in (tokens, changed))
    assert torch.equal(before[:, 12:], after[:, 12:])
    assert not torch.equal(before[:, :12], after[:, :12])


def test_recurrence_changes_nothing_but_the_order(config, network):
    """A layer's weights are the same objects in every order: one pass of each layer is phase 0."""
    once = tuple(range(config.layers))
    moved(network)
    with torch.no_grad():
        phase_0 = network.logits(text(), Pass(config.orders[0]))
        assert torch.equal(phase_0, network.logits(text(), Pass(once)))
        if config.recurrence:
            assert not torch.equal(phase_0, network.logits(text(), Pass(config.orders[-1])))


def test_a_pass_goes_on_from_the_middle(config, network):
    """Wherever it is cut: lanes, skips, embeddings and first values are all that goes on."""
    moved(network)
    tokens, order = text(), config.orders[-1]
    with torch.no_grad():
        whole = network.logits(tokens, Pass(order))
        for steps in range(1, len(order)):
            midway = network.midway(tokens, order, steps)
            assert torch.equal(network.logits(tokens, Pass(order, midway=midway)), whole)

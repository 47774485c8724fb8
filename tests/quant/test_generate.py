"""Writing with remembered keys and values: the same logits as a whole forward pass, everywhere."""

import dataclasses

import numpy as np
import pytest
import torch
from recipe_case import different, moved, narrow_recipe

from paramgolf.data.special_tokens import BOS
from paramgolf.model.network import Network, Pass
from paramgolf.quant.generate import draw_tokens, generate

VOCAB, LENGTH = 97, 24


def recipe_network(name, **changes):
    """A recipe's network, narrower, its parameters moved off their initial values."""
    config = dataclasses.replace(narrow_recipe(name).model, **changes)
    return moved(Network(config, VOCAB, seed=1))


def begins(draws):
    return torch.full_like(draws[:, 0], BOS, dtype=torch.int64)


def written_logits(network, draws, monkeypatch):
    """The text of `generate`, and the logits by which each of its tokens was chosen."""
    seen, logits = [], Network.logits

    def spy(self, tokens, options, *, part=None):
        seen.append(logits(self, tokens, options, part=part))
        return seen[-1]

    monkeypatch.setattr(Network, "logits", spy)
    text = generate(network, begins(draws), draws, temperature=0.8)
    monkeypatch.undo()
    return text, torch.cat(seen, 1)


def check_logits(network, draws, monkeypatch, *, tolerance):
    text, found = written_logits(network, draws, monkeypatch)
    with torch.no_grad():
        expected = network.logits(text, Pass(order=network.config.orders[-1]))[:, :-1]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    probabilities = torch.softmax(expected.double() / 0.8, -1)
    assert (text[:, 0] == BOS).all()
    return text, probabilities


@pytest.mark.parametrize("name", [name for name in different("model") if name != "sample"])
def test_logits_are_those_of_a_whole_pass(name, monkeypatch):
    """Recurrence, skips, lanes, XSA, gates, smearing, bigrams, value embeddings and residuals."""
    network = recipe_network(name)
    draws = torch.from_numpy(np.random.default_rng(0).random((3, LENGTH)))
    text, probabilities = check_logits(network, draws, monkeypatch, tolerance=2e-4)
    for t in range(1, LENGTH):
        assert torch.equal(
            draw_tokens(probabilities[:, t - 1], draws[:, t : t + 1])[:, 0], text[:, t]
        )


def test_positions_beyond_the_trained_length_turn_as_in_a_whole_pass(monkeypatch):
    network = recipe_network("pr1493", rope_trained_length=8)
    draws = torch.from_numpy(np.random.default_rng(1).random((2, LENGTH)))
    check_logits(network, draws, monkeypatch, tolerance=2e-4)


@pytest.mark.parametrize("trained", [8, 24, None])
def test_the_rotary_base_may_follow_the_length(trained):
    """Each token is chosen by a whole pass over those before it, and their base."""
    network = recipe_network("pr1204", rope_trained_length=trained)
    draws = torch.from_numpy(np.random.default_rng(3).random((64, LENGTH)))
    given = (network, begins(draws), draws)
    text = generate(*given, temperature=0.5, rope_follows_length=True)
    for t in range(1, LENGTH):
        with torch.no_grad():
            logits = network.logits(text[:, :t], Pass(order=network.config.orders[-1]))[:, -1]
        probabilities = torch.softmax(logits.double() / 0.5, -1)
        assert torch.equal(draw_tokens(probabilities, draws[:, t : t + 1]), text[:, t : t + 1])
    fixed = generate(*given, temperature=0.5)
    assert torch.equal(text, fixed) == (trained != 8)


@pytest.mark.gpu
def test_a_recorded_step_writes_what_an_eager_one_does(monkeypatch):
    network = recipe_network("pr1493").cuda()
    draws = torch.from_numpy(np.random.default_rng(2).random((4, LENGTH))).cuda()
    text = generate(network, begins(draws), draws, temperature=0.8)
    monkeypatch.setattr("paramgolf.quant.generate.WARM_UPS", LENGTH)  # too few tokens to record
    assert torch.equal(text, generate(network, begins(draws), draws, temperature=0.8))
    with torch.no_grad():
        logits = network.logits(text, Pass(order=network.config.orders[-1]))
    chosen = draw_tokens(torch.softmax(logits[:, :-1].double() / 0.8, -1)[:, -1], draws[:, -1:])
    assert (chosen[:, 0] == text[:, -1]).float().mean() > 0.5

"""The second token as a target of training: which token it is, and what its loss adds."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from process_case import ALONE
from recipe_case import moved

from paramgolf.data.special_tokens import BOS
from paramgolf.data.token_set import open_tokens
from paramgolf.model.head import IMPOSSIBLE, NO_TARGET, Allowed, Head, Second, head_nll
from paramgolf.model.network import Network
from paramgolf.training.batches import Batches
from paramgolf.training.passes import Passes, second_tokens
from paramgolf.training.regime import regime_at
from paramgolf.training.schedule import point, second_token_weight
from paramgolf.training.state import TrainState


def test_second_tokens_stay_in_their_row_and_document() -> None:
    rows = torch.tensor([[BOS, 5, 6, BOS, 7, 8], [2, 3, 4, 5, 6, BOS]])
    none = NO_TARGET
    # targets are 5 6 BOS 7 8: after 6 comes the BOS that ends its document, after BOS nothing
    assert second_tokens(rows).tolist() == [[6, BOS, none, 8, none], [4, 5, 6, BOS, none]]


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_both_losses_by_their_weights(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, embedding = (torch.randn(*s, 8, generator=generator) for s in ((2, 5), (40,)))
    targets, seconds = torch.randint(40, (2, 2, 5), generator=generator)
    seconds[0, :2] = NO_TARGET
    words = torch.randint(-(2**31), 2**31, (3, 2), generator=generator, dtype=torch.int32)
    allowed = Allowed(words, torch.randint(3, (2, 5), generator=generator)) if masked else None
    head = Head(embedding.requires_grad_(), 10.0, allowed=allowed)
    plain, alone = (head_nll(hidden, t.clamp_min(0), head) for t in (targets, seconds))
    counts = (seconds != NO_TARGET) & (alone < -IMPOSSIBLE / 2)
    expected = plain + torch.where(counts, 0.5 * alone, 0.0)
    found = head_nll(hidden, targets, head._replace(second=Second(seconds, torch.tensor(0.5))))
    torch.testing.assert_close(found, plain)
    gradients = (torch.autograd.grad(loss.sum(), embedding)[0] for loss in (found, expected))
    torch.testing.assert_close(*gradients)
    assert 0 < counts.sum() < 10


def test_the_weight_falls_to_nothing(sample) -> None:
    config = dataclasses.replace(
        sample.train, steps=100, second_token_weight=0.5, second_token_until=0.6
    )
    found = [second_token_weight(config, point(config, step, 0.0)) for step in (0, 30, 60, 90)]
    assert found == [0.5, 0.25, 0.0, 0.0]


def test_training_passes_see_second_tokens_until_their_weight_is_0(
    tokens_folder, tiny_model, sample
) -> None:
    model, tokens = tiny_model(), open_tokens(tokens_folder)
    sizes = {"batch_tokens": 256, "micro_batch_tokens": 64, "sequence_length": 32}
    plain = dataclasses.replace(sample.train, steps=10, loader="shuffled", **sizes)
    second = dataclasses.replace(plain, second_token_weight=0.5)
    regime = regime_at(model, plain, point(plain, 0, 0.0))
    found = []
    for config, weight in ((plain, 0.0), (second, 0.0), (second, 0.5)):
        state = TrainState(moved(Network(model, 64, seed=1)), config, ALONE)
        state.zero_grad()
        batches = Batches(tokens.train(), config, ALONE, config.micro_batch_tokens)
        passes = Passes(model, config, batches, ALONE)
        passes.weigh_second_tokens(weight)
        loss = passes.gradient(state.network, regime, 0)
        found.append((float(loss), state.network.get_parameter("embedding").grad))
    (loss, gradient), (same_loss, same), (another_loss, another) = found
    assert loss == pytest.approx(same_loss) == pytest.approx(another_loss)
    torch.testing.assert_close(gradient, same)
    assert ((another - gradient).norm() / gradient.norm()).item() > 0.1

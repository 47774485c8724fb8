"""Further targets of training: which tokens they are, and what their losses add."""

from __future__ import annotations

import dataclasses

import pytest
import token_case
import torch
from process_case import ALONE
from recipe_case import moved

from paramgolf.data.special_tokens import BOS
from paramgolf.data.token_set import open_tokens
from paramgolf.errors import ParamGolfError
from paramgolf.model.head import IMPOSSIBLE, NO_TARGET, Allowed, Further, Head, head_nll
from paramgolf.model.network import Network
from paramgolf.training.batches import Batches
from paramgolf.training.config import FurtherTarget
from paramgolf.training.further_targets import FurtherTargets, ahead, prefixes
from paramgolf.training.passes import Passes
from paramgolf.training.regime import regime_at
from paramgolf.training.schedule import further_weights, point
from paramgolf.training.state import TrainState

SECOND = FurtherTarget(token="second", weight=0.5, until=0.6)
THIRD = FurtherTarget(token="third", weight=0.25, until=0.3)


def test_targets_ahead_stay_in_their_row_and_document() -> None:
    rows = torch.tensor([[BOS, 5, 6, BOS, 7, 8], [2, 3, 4, 5, 6, BOS]])
    none = NO_TARGET
    # targets are 5 6 BOS 7 8: after 6 comes the BOS that ends its document, after BOS nothing
    assert ahead(rows, 1).tolist() == [[6, BOS, none, 8, none], [4, 5, 6, BOS, none]]
    assert ahead(rows, 2).tolist() == [[BOS, none, none, none, none], [5, 6, BOS, none, none]]


@pytest.mark.parametrize("bos_id", [1, 3])
def test_prefixes_are_the_longest_pieces_that_a_piece_begins_with(bos_id: int) -> None:
    options = {"bos_id": bos_id, "unk_id": 4 - bos_id, "byte_fallback": False, "vocab_size": 90}
    model = token_case.processor(token_case.other(**options))
    found, pieces = prefixes(model), [model.id_to_piece(i) for i in range(model.vocab_size())]
    pieces[bos_id], pieces[BOS] = pieces[BOS], pieces[bos_id]  # as tokens of the shards
    assert found[BOS] == NO_TARGET
    assert sum(prefix != NO_TARGET for prefix in found) > 20
    for token, prefix in enumerate(found):
        shorter = [p for p in pieces if pieces[token].startswith(p) and p != pieces[token]]
        expected = max(shorter, key=len) if shorter and token != BOS else None
        assert (None if prefix == NO_TARGET else pieces[prefix]) == expected


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_all_losses_by_their_weights(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, embedding = (torch.randn(*s, 8, generator=generator) for s in ((2, 5), (40,)))
    targets = torch.randint(40, (2, 5), generator=generator)
    further = torch.randint(-1, 40, (2, 5, 3), generator=generator)
    further[0, :2, 1] = NO_TARGET
    weights = torch.tensor([0.5, 0.25, 0.125])
    words = torch.randint(-(2**31), 2**31, (3, 2), generator=generator, dtype=torch.int32)
    allowed = Allowed(words, torch.randint(3, (2, 5), generator=generator)) if masked else None
    head = Head(embedding.requires_grad_(), 10.0, allowed=allowed)
    plain = head_nll(hidden, targets, head)
    expected, counted = plain, 0
    for k, weight in enumerate(weights):
        alone = head_nll(hidden, further[..., k].clamp_min(0), head)
        counts = (further[..., k] != NO_TARGET) & (alone < -IMPOSSIBLE / 2)
        expected, counted = expected + torch.where(counts, weight * alone, 0.0), counted + counts
    found = head_nll(hidden, targets, head._replace(further=Further(further, weights)))
    torch.testing.assert_close(found, plain)
    gradients = (torch.autograd.grad(loss.sum(), embedding)[0] for loss in (found, expected))
    torch.testing.assert_close(*gradients)
    assert 0 < counted.sum() < 30


def test_weights_fall_to_nothing(sample) -> None:
    config = dataclasses.replace(sample.train, steps=100, further_targets=(SECOND, THIRD))
    found = [further_weights(config, point(config, step, 0.0)) for step in (0, 30, 60)]
    assert found == [(0.5, 0.25), (0.25, 0.0), (0.0, 0.0)]


def test_training_passes_see_them_until_their_weights_are_0(
    tokens_folder, tiny_model, sample
) -> None:
    model, tokens = tiny_model(), open_tokens(tokens_folder)
    sizes = {"batch_tokens": 256, "micro_batch_tokens": 64, "sequence_length": 32}
    config = dataclasses.replace(
        sample.train, steps=10, further_targets=(SECOND, THIRD), loader="shuffled", **sizes
    )
    regime = regime_at(model, config, point(config, 0, 0.0))
    targets = FurtherTargets(config, tokens, ALONE.device)
    found = []
    for further, weights in ((None, ()), (targets, (0.0, 0.0)), (targets, (0.5, 0.25))):
        state = TrainState(moved(Network(model, 64, seed=1)), config, ALONE)
        state.zero_grad()
        batches = Batches(tokens.train(), config, ALONE, config.micro_batch_tokens)
        targets.weigh(weights)
        loss = Passes(model, config, batches, ALONE, further).gradient(state.network, regime, 0)
        found.append((float(loss), state.network.get_parameter("embedding").grad))
    (loss, gradient), (same_loss, same), (another_loss, another) = found
    assert loss == pytest.approx(same_loss) == pytest.approx(another_loss)
    torch.testing.assert_close(gradient, same)
    assert ((another - gradient).norm() / gradient.norm()).item() > 0.1


def test_prefixes_need_pieces(tokens_folder, sample) -> None:
    prefix = FurtherTarget(token="prefix", weight=0.25, until=0.3)
    config = dataclasses.replace(sample.train, further_targets=(prefix,))
    tokens = open_tokens(tokens_folder)
    manifest = dataclasses.replace(tokens.manifest, tokenizer="tokenizer.json")
    with pytest.raises(ParamGolfError, match=r"`prefix` needs the pieces(.|\n)*tokenizer\.json"):
        FurtherTargets(config, dataclasses.replace(tokens, manifest=manifest), ALONE.device)

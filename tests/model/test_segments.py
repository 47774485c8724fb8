"""Packed documents: attention stays inside a document, and inside a piece of a long one."""

from __future__ import annotations

import pytest
import torch
from recipe_case import moved

from paramgolf.data.special_tokens import BOS
from paramgolf.model.attention import find_segments
from paramgolf.model.flops import forward_flops
from paramgolf.model.network import Network, Pass


def test_segments_begin_with_rows_documents_and_pieces():
    tokens = torch.full((2, 10), 7)
    tokens[0, 3] = tokens[1, 0] = BOS
    bounds, longest, _ = find_segments(tokens, BOS, longest=4)
    assert bounds.tolist()[:8] == [0, 3, 7, 10, 14, 18, 20, 20]
    assert longest == 4
    assert len(bounds) % 64 == 0
    assert bounds[-1] == 20


@pytest.mark.parametrize("smear", ["none", "token", "channel"])
def test_a_document_scores_the_same_packed_and_alone(tiny_model, smear):
    config = tiny_model(smear=smear, bigram_buckets=16, bigram_dim=8)
    network = moved(Network(config, 64, seed=1))
    generator = torch.Generator().manual_seed(3)
    documents = [torch.randint(4, 64, (n,), generator=generator) for n in (9, 5, 12)]
    for document in documents:
        document[0] = BOS
    packed = Pass(config.orders[-1], document_tokens=32)
    whole = network.logits(torch.cat(documents)[None], packed)[0]
    start = 0
    for document in documents:
        alone = network.logits(document[None], Pass(config.orders[-1]))[0]
        torch.testing.assert_close(whole[start : start + len(document)], alone)
        start += len(document)


def test_a_long_document_is_seen_in_pieces(tiny_model):
    config = tiny_model()
    network = Network(config, 64, seed=1)
    tokens = torch.randint(4, 64, (1, 16), generator=torch.Generator().manual_seed(3))
    changed = tokens.clone()
    changed[0, 5] = 9
    options = Pass(config.orders[-1], document_tokens=8)
    before, after = network.logits(tokens, options), network.logits(changed, options)
    assert torch.equal(before[:, 8:], after[:, 8:])
    assert torch.equal(before[:, :5], after[:, :5])


def test_layers_with_a_window_see_no_further(tiny_model):
    """As a pass with a window, if all layers have it; a window beyond the row changes nothing."""
    plain = tiny_model()
    everywhere = tiny_model(window_layers=(0, 1, 2, 3), window=4)
    tokens = torch.randint(4, 64, (2, 16), generator=torch.Generator().manual_seed(3))
    order = plain.orders[-1]
    models = plain, everywhere, tiny_model(window_layers=(1,))
    networks = [moved(Network(model, 64, seed=1)) for model in models]
    whole = networks[0].logits(tokens, Pass(order))
    windowed = networks[0].logits(tokens, Pass(order, window=4))
    assert torch.equal(networks[1].logits(tokens, Pass(order)), windowed)
    assert torch.equal(networks[1].logits(tokens, Pass(order, window=9)), windowed)
    assert torch.equal(networks[2].logits(tokens, Pass(order)), whole)  # 512 tokens: all of them
    assert not torch.allclose(whole, windowed)


def test_a_window_counts_less_arithmetic(tiny_model):
    whole, half = (
        forward_flops(tiny_model(window_layers=layers, window=8), 64, (0, 1, 2, 3), 16)
        for layers in ((), (0, 1, 2, 3))
    )
    assert whole - half == 4 * 32 * 4 * (8 - 6)  # positions seen on average: 8 of 16 in all, or 6

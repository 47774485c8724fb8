"""Adapters in the last layers alone: the layers below run once a token, and no score tells."""

import numpy as np
import pytest
import torch
from scoring_case import (
    ALONE,
    VOCAB,
    WINDOW,
    adapt_plainly,
    evaluated,
    make_lora_config,
    make_network,
    make_text,
)

from paramgolf.model.network import Midway, Network
from paramgolf.scoring import lower_layers
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.lora_documents import DocumentScorer
from paramgolf.scoring.lower_layers import LowerLayers
from paramgolf.scoring.session import Session
from paramgolf.scoring.text import find_documents

LAST = 2  # of the order 0, 1, 1, 2
BLOCK = WINDOW // 4
# AdamW's step follows the sign of a gradient above eps: rounding shows unless eps is large
SMOOTH = {"eps": 1e-3, "last_layers": LAST}
WARM = {"warm_a": True, "batch_documents": 2}
PHASES = {"phases": 2, "prefix_documents": 10, "batch_documents": 2}
# where a window is cut, a chunk of these networks reads what lies below in other windows
NETWORKS = {
    "two lanes": {"parallel": "lanes"},
    "three lanes below": {"layers": 6, "recurrence": [], "parallel": "lanes", "parallel_start": 3},
    "value residual": {"value_residual": True, "smear": "token"},
    "value embedding": {"value_embedding_layers": [2], "value_embedding_dim": 8},
    "windows": {"window_layers": [1], "window": 5},
}


def adapt(text, documents=None, adapter=None, network=None, **changes) -> Ledger:
    config = make_lora_config("lora_documents", {**SMOOTH, **(adapter or {})}, documents, **changes)
    return evaluated(network or make_network(), text, config)


def plain_lower(
    network: Network, tokens: torch.Tensor, first: int, last: int, steps: int
) -> Midway:
    """What the first layers make of a document, each token in the window that its place says."""
    order, states = network.config.orders[-1], []
    for place in range(last - first):
        blocks = max(0, -(-(place + 1 - WINDOW) // BLOCK))
        begin = blocks * BLOCK
        row = tokens[None, first + begin : first + place + 1]
        states.append(network.midway(row, order, steps))

    def join(*parts):
        if isinstance(parts[0], torch.Tensor):
            return torch.cat([x[:, -1:] for x in parts], dim=1)
        return tuple(map(join, *parts)) if isinstance(parts[0], tuple) else parts[0]

    return Midway(*map(join, *states))


def part_of(state, span: slice):
    if isinstance(state, torch.Tensor):
        return state[:, span]
    return tuple(part_of(x, span) for x in state) if isinstance(state, tuple) else state


def brute_force(text, first, last, config, network):
    """Score one document by itself, its lower layers token by token."""
    tokens, steps = torch.from_numpy(text.tokens.astype(np.int64)), len(network.config.orders[-1])
    with torch.no_grad():
        lower = plain_lower(network, tokens, first, last, steps - LAST)

    def midway(begin: int, end: int) -> Midway:
        return Midway(*part_of(tuple(lower), slice(begin - first, end - first)))

    return adapt_plainly(network, text, first, last, config, layers=LAST, midway=midway)


@pytest.mark.parametrize("name", NETWORKS)
def test_documents_of_any_length_score_as_in_a_plain_loop(name):
    text = make_text(260)
    network = make_network(**NETWORKS[name])
    config = make_lora_config("lora_documents", SMOOTH)
    start, stop = find_documents(text)
    assert (stop - start).max() > WINDOW + 3 * BLOCK  # so that places are used again
    nats = adapt(text, network=make_network(**NETWORKS[name])).nats
    for first, last in zip(start, stop, strict=True):
        expected = brute_force(text, first, last, config, network)
        np.testing.assert_allclose(nats[first:last], expected, atol=1e-4)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("targets", [("k", "o", "mlp", "head"), ("q", "v")])
@pytest.mark.parametrize("documents", [{}, WARM, PHASES, {**WARM, "last_window": "full"}])
def test_within_a_window_passes_from_the_tokens_score_the_same(
    documents, targets, per_layer, monkeypatch
):
    text, window = make_text(300), 128
    start, stop = find_documents(text)
    assert (stop - start).max() < window
    adapter = {"targets": targets, "per_layer": per_layer}
    sizes = {"window": window, "stride": window, "chunk_tokens": window, "epochs": 1}
    kept = adapt(text, documents, adapter, **sizes)
    monkeypatch.setattr(LowerLayers, "at", lambda *_: None)
    anew = adapt(text, documents, adapter, **sizes)
    np.testing.assert_allclose(kept.nats, anew.nats, atol=1e-4)
    assert (
        kept.nats != adapt(text, documents, {**adapter, "last_layers": None}, **sizes).nats
    ).any()


def test_tokens_within_a_window_pass_the_lower_layers_once(monkeypatch):
    rows, midway = [], Network.midway

    def watched(network, tokens, *others):
        rows.append(tokens)
        return midway(network, tokens, *others)

    monkeypatch.setattr(Network, "midway", watched)
    monkeypatch.setattr(lower_layers, "ROUND", 1)
    text = make_text(300)
    adapt(text, {"batch_documents": 1}, window=128, stride=128, chunk_tokens=128)
    start, stop = find_documents(text)
    # one pass was over no text
    assert sum(row.numel() for row in rows if row.any()) == (stop - start).sum()


def test_what_is_kept_does_not_grow_with_documents():
    tokens = torch.randint(2, VOCAB, (400,))
    lower = LowerLayers(make_network(), tokens, 2, rows=3, window=WINDOW, chunk=6)
    start = np.array([0, 120, 240])
    lower.begin(start, start + 100)
    lower.cover(3, 6)
    for end in (6, 60, 100):
        lower.cover(3, end)
        kept = lower.at(torch.tensor([max(0, end - WINDOW)] * 3), WINDOW)
        assert kept.x0.shape == (3, WINDOW, 16)
    assert lower.places == WINDOW + BLOCK + 6


def test_a_pass_that_reads_one_token_ahead_would_be_seen(monkeypatch):
    """The planted fault that these tests are for: what is kept is a token further on."""
    at = LowerLayers.at
    text, documents = make_text(200), {"order": "stream", "batch_documents": 1, "chains": 1}
    before = adapt(text, documents).nats
    monkeypatch.setattr(
        LowerLayers, "at", lambda self, places, length: at(self, places + 1, length)
    )
    assert np.abs(adapt(text, documents).nats - before).max() > 0.1


def test_the_scorers_probe_asks_passes_from_the_tokens():
    config = make_lora_config("lora_documents", SMOOTH)
    scorer = DocumentScorer(make_network(), make_text(100), config, Session(ALONE))
    assert scorer.trainer.options().midway is None
    assert scorer.witness is not scorer.network

"""Adapters in the last layers alone: the layers below run once a token, and no score tells."""

import numpy as np
import pytest
import torch
from scoring_case import (
    ALONE,
    VOCAB,
    WINDOW,
    adapt_plainly,
    make_lora_config,
    make_network,
    make_text,
    with_token,
)

from paramgolf.model.network import Midway, Network
from paramgolf.scoring import lora_documents, lower_layers
from paramgolf.scoring.evaluation import score_and_adapt
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.lora_documents import DocumentScorer
from paramgolf.scoring.lower_layers import LowerLayers
from paramgolf.scoring.session import Session
from paramgolf.scoring.text import Text, find_documents

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
    return score_and_adapt(network or make_network(), text, config, Session(ALONE))


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


@pytest.mark.parametrize("changes", [{"batch_documents": 1}, {"chains": 5}, {"order": "stream"}])
def test_neither_batches_nor_chains_nor_order_change_a_document(changes):
    text = make_text(200)
    np.testing.assert_allclose(adapt(text, changes).nats, adapt(text).nats, atol=2e-4)


def test_dropping_rows_and_rounding_widths_change_nothing(monkeypatch):
    text, documents = make_text(400), {"batch_documents": 8, "chains": 1}
    with monkeypatch.context() as patch:
        patch.setattr(lora_documents, "FEWEST_ROWS", 1000)
        whole = adapt(text, documents).nats
    monkeypatch.setattr(lora_documents, "FEWEST_ROWS", 2)
    monkeypatch.setattr(lora_documents, "WIDTH_STEP", 4)
    np.testing.assert_allclose(adapt(text, documents).nats, whole, atol=2e-4)


def test_each_token_is_scored_once_and_then_learned_from():
    text = make_text(200)
    verdict = adapt(text).close()
    assert verdict["scored_once"]
    assert verdict["score_first"]
    start, stop = find_documents(text)
    assert verdict["targets_trained"] == (6 * ((stop - start - 1) // 6)).sum()


def test_learning_helps_on_documents_that_repeat_themselves():
    document = np.concatenate([[1], np.tile([9, 5, 30, 7, 44, 12], 10)])
    tokens = np.tile(document, 3).astype(np.uint16)
    text = Text(tokens, np.ones(len(tokens) - 1, dtype=np.uint16), 1)
    gained = {"eps": 1e-8}
    assert adapt(text, adapter=gained).nats.sum() < 0.9 * adapt(text, adapter={"lr": 0}).nats.sum()


class TestCausality:
    @pytest.mark.parametrize("documents", [{}, PHASES])
    def test_in_stream_order_no_past_score_moves_with_a_future_token(self, documents):
        text, documents = make_text(300), {"order": "stream", **documents}
        before = adapt(text, documents).nats
        start, stop = find_documents(text)
        longest = int((stop - start).argmax())
        # in a window that the lower layers read ahead, and in others
        within = int(start[longest]) + WINDOW + BLOCK // 2
        for position in (61, 130, within):
            assert text.tokens[position] != 1
            after = adapt(with_token(text, position), documents).nats
            assert (before[: position - 1] == after[: position - 1]).all()
            assert before[position - 1] != after[position - 1]

    @pytest.mark.parametrize("position", [61, 130])
    def test_no_past_score_moves_with_the_place_where_a_document_ends(self, position):
        text, documents = make_text(200), {"order": "stream"}
        assert text.tokens[position] != 1
        before = adapt(text, documents).nats
        after = adapt(with_token(text, position, token=1), documents).nats
        # other documents share a batch now: the same scores but for rounding
        np.testing.assert_allclose(before[: position - 1], after[: position - 1], atol=2e-4)


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

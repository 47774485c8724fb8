"""Sliding scores: parity with one target at a time, any batch, causality, normalization."""

import numpy as np
import pytest
import torch
from scoring_case import (
    STRIDE,
    WINDOW,
    evaluated,
    make_network,
    make_sliding,
    make_text,
    with_token,
)

from paramgolf.model.network import Pass
from paramgolf.scoring.text import find_documents


def slide(text, network=None, **changes):
    ledger = evaluated(network or make_network(), text, make_sliding(**changes))
    ledger.close()
    return ledger.nats


def brute_force(network, text, window, stride):
    """Score one target at a time with the context of the first window that reaches it."""
    nats = []
    for j in range(len(text)):
        start = max(0, -(-(j - window + 1) // stride) * stride)
        inputs = torch.from_numpy(text.tokens[start : j + 1].astype(np.int64))[None]
        with torch.no_grad():
            logits = network.logits(inputs, Pass(order=network.config.orders[-1]))[0, -1]
        nats.append(-logits.double().log_softmax(-1)[int(text.tokens[j + 1])].item())
    return np.array(nats)


@pytest.mark.parametrize(
    ("count", "window", "stride"), [(70, 16, 4), (70, 16, 16), (61, 16, 5), (9, 16, 4), (40, 8, 1)]
)
def test_scores_equal_one_target_at_a_time(count, window, stride):
    network, text = make_network(), make_text(count)
    scores = slide(text, window=window, stride=stride, network=network)
    np.testing.assert_allclose(scores, brute_force(network, text, window, stride), atol=2e-5)


def test_scores_do_not_depend_on_the_batch():
    text = make_text(150)
    one = slide(text, batch_windows=1)
    for rows in (2, 7, 64):
        np.testing.assert_allclose(slide(text, batch_windows=rows), one, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"smear": "token", "bigram_buckets": 32}])
@pytest.mark.parametrize("position", [1, 17, 64, 100])
def test_no_past_score_moves_with_a_future_token(changes, position):
    text = make_text(110)
    network = make_network(**changes)
    before = slide(text, network=network)
    after = slide(with_token(text, position), network=network)
    # token p is target p - 1
    assert (before[: position - 1] == after[: position - 1]).all()
    assert before[position - 1] != after[position - 1]
    assert (before[position : position + 3] != after[position : position + 3]).all()


class TestDocuments:
    def score(self, text, rows=3):
        return evaluated(
            make_network(), text, make_sliding(mode="documents", batch_windows=rows)
        ).nats

    def test_scores_are_those_of_documents_alone(self):
        network, text = make_network(), make_text(200)
        nats = self.score(text)
        tokens = torch.from_numpy(text.tokens.astype(np.int64))
        options = Pass(network.config.orders[-1])
        for first, last in zip(*find_documents(text), strict=True):
            for begin in range(first, last):
                # which window a target is in follows from its place in its document
                place = begin - first
                late = max(0, -(-(place + 1 - WINDOW) // STRIDE)) * STRIDE
                start = first + late if last - first > WINDOW else first
                inputs, targets = tokens[start : begin + 1], tokens[start + 1 : begin + 2]
                with torch.no_grad():
                    expected = network.nll(inputs[None], targets[None], options)[0, -1]
                assert nats[begin] == pytest.approx(float(expected), abs=1e-5)

    def test_no_score_moves_with_a_future_token_or_another_document(self):
        text = make_text(200)
        start, stop = find_documents(text)
        i = int(np.argmax(stop - start))
        position = int(start[i] + stop[i]) // 2
        before, after = (self.score(t) for t in (text, with_token(text, position)))
        changed = np.flatnonzero(before != after)
        assert changed.min() == position - 1
        assert changed.max() < stop[i]

    def test_batches_do_not_change_scores(self):
        text = make_text(200)
        nats = [self.score(text, n) for n in (1, 7)]
        np.testing.assert_allclose(*nats, atol=1e-5)


class TestWindowed:
    def score(self, text, row_windows, network=None):
        sizes = {"stride": 1, "row_windows": row_windows, "batch_windows": 2}
        config = make_sliding(mode="windowed", **sizes)
        return evaluated(network or make_network(), text, config).nats

    @pytest.mark.parametrize("trained", [None, WINDOW])
    def test_one_layer_sees_exactly_the_window(self, trained):
        # deeper, what a position saw reaches beyond the window; the rotary base follows the window
        shallow = {
            "layers": 1,
            "recurrence": [],
            "parallel": "none",
            "rope_trained_length": trained,
        }
        network, text = make_network(**shallow), make_text(150)
        nats = self.score(text, 3, network)
        np.testing.assert_allclose(nats, slide(text, stride=1, network=network), atol=1e-5)

    def test_rows_without_a_bound_are_one_pass(self):
        text = make_text(90)
        whole = slide(text, window=96, stride=96)
        np.testing.assert_allclose(self.score(text, 6)[:WINDOW], whole[:WINDOW], atol=1e-5)
        assert (np.abs(self.score(text, 6) - whole)[WINDOW:] > 1e-4).any()

    @pytest.mark.parametrize("position", [20, 70])
    def test_no_past_score_moves_with_a_future_token(self, position):
        text = make_text(150)
        before, after = self.score(text, 3), self.score(with_token(text, position), 3)
        assert (before[: position - 1] == after[: position - 1]).all()
        assert before[position - 1] != after[position - 1]

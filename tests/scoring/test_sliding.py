"""Sliding scores: parity with one target at a time, any batch, causality, normalisation."""

import numpy as np
import pytest
import torch
from scoring_case import ALONE, STRIDE, VOCAB, WINDOW, make_network, make_text

from paramgolf.model.network import Pass
from paramgolf.scoring import sliding
from paramgolf.scoring.ledger import LedgerError
from paramgolf.scoring.sliding import score_fixed
from paramgolf.scoring.text import Text
from paramgolf.scoring.windows import Windows, sliding_windows


def slide(text, ranks, *, window=WINDOW, stride=STRIDE, rows=5, network=None):
    network = network or make_network()
    ledger = score_fixed(network, text, ranks, window=window, stride=stride, rows=rows)
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
    scores = slide(text, ALONE, window=window, stride=stride, network=network)
    np.testing.assert_allclose(scores, brute_force(network, text, window, stride), atol=2e-5)


def test_scores_do_not_depend_on_the_batch():
    text = make_text(150)
    one = slide(text, ALONE, rows=1)
    for rows in (2, 7, 64):
        np.testing.assert_allclose(slide(text, ALONE, rows=rows), one, atol=1e-5)


def test_the_same_call_gives_the_same_bits():
    text = make_text(150)
    assert (slide(text, ALONE) == slide(text, ALONE)).all()


@pytest.mark.parametrize("changes", [{}, {"smear": "token", "bigram_buckets": 32}])
@pytest.mark.parametrize("position", [1, 17, 64, 100])
def test_no_past_score_moves_with_a_future_token(changes, position):
    text = make_text(110)
    tokens = text.tokens.copy()
    tokens[position] = 2 + (tokens[position] - 1) % (VOCAB - 2)
    network = make_network(**changes)
    before = slide(text, ALONE, network=network)
    after = slide(Text(tokens, text.byte_counts, 1), ALONE, network=network)
    # token p is target p - 1
    assert (before[: position - 1] == after[: position - 1]).all()
    assert before[position - 1] != after[position - 1]
    assert (before[position : position + 3] != after[position : position + 3]).all()


def test_probabilities_add_up_to_one():
    network, text = make_network(), make_text(40)
    inputs = torch.from_numpy(text.tokens[:-1].astype(np.int64))[None]
    with torch.no_grad():
        nats = [
            network.nll(inputs, torch.full_like(inputs, v), Pass(order=network.config.orders[-1]))
            for v in range(VOCAB)
        ]
    total = torch.stack(nats).double().neg().exp().sum(0)
    np.testing.assert_allclose(total.numpy(), 1.0, atol=1e-5)


def tail_twice(count, length, stride):
    windows = sliding_windows(count, length, stride)
    return windows[np.append(np.arange(len(windows)), len(windows) - 1)]


def tail_dropped(count, length, stride):
    return sliding_windows(count, length, stride)[:-1]


def stretched(count, length, stride):
    """Score a target more a window: what a window scored is scored again by the next."""
    w = sliding_windows(count, length, stride)
    return Windows(length, w.start, np.maximum(w.first - 1, 0), w.stop)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (tail_twice, "scored a second time"),
        (stretched, "scored a second time"),
        (tail_dropped, "never scored"),
    ],
)
def test_a_wrong_plan_never_becomes_a_score(monkeypatch, windows, message):
    monkeypatch.setattr(sliding, "sliding_windows", windows)
    with pytest.raises(LedgerError, match=message):
        slide(make_text(70), ALONE)

"""Adaptive scores: score first, causal, reproducible, and illegal orders refused."""

import numpy as np
import pytest
import torch
from scoring_case import (
    ALONE,
    SLIDING,
    WINDOW,
    evaluated,
    make_config,
    make_network,
    make_text,
    with_token,
)

from paramgolf.model.network import Pass
from paramgolf.scoring.ledger import LedgerError
from paramgolf.scoring.scorer import Scorer
from paramgolf.scoring.session import Session
from paramgolf.scoring.sgd import Lesson, SgdTrainer
from paramgolf.scoring.text import Text


def adapt(text, network=None, **changes):
    return evaluated(network or make_network(), text, make_config(**changes))


def test_rate_zero_scores_as_the_sliding_window_does():
    text = make_text(170)
    fixed = evaluated(make_network(), text, SLIDING)
    np.testing.assert_allclose(adapt(text, lr=0.0).nats, fixed.nats, atol=1e-5)
    assert (adapt(text, lr=0.0).nats == adapt(text, mode="none").nats).all()


def test_the_first_chunk_is_scored_before_anything_is_learned():
    text = make_text(170)
    frozen, adapted = adapt(text, mode="none").nats, adapt(text).nats
    assert (frozen[:48] == adapted[:48]).all()
    assert (frozen[48:] != adapted[48:]).mean() > 0.99


def test_learning_helps_on_a_text_that_repeats_itself():
    tokens = np.tile(make_text(24).tokens[:24], 20)
    text = Text(tokens, np.ones(len(tokens) - 1, dtype=np.uint16), 1)
    assert adapt(text).nats.sum() < 0.9 * adapt(text, mode="none").nats.sum()


def test_the_record_of_updates():
    ledger = adapt(make_text(170))
    # 4 chunks of 48 targets, the last not learned from; 3 sequences a chunk, 2 an update, 2 epochs
    assert ledger.close()["updates"] == 3 * 2 * 2
    assert ledger.close()["targets_trained"] == 3 * 48
    assert [(int(u.start[0]), int(u.stop[0])) for u in ledger.updates[:4]] == [
        (0, 32),
        (32, 48),
    ] * 2
    weights = np.array(ledger.weights)[ledger.entry]
    assert weights[[0, 47, 48, 96, 169]].tolist() == [0, 0, 4, 8, 12]


@pytest.mark.parametrize("position", [47, 49, 60, 100])
def test_no_past_score_moves_with_a_future_token(position):
    text = make_text(160)
    before = adapt(text).nats
    after = adapt(with_token(text, position)).nats
    assert (before[: position - 1] == after[: position - 1]).all()
    # the flipped token was learned from: later chunks all feel it
    assert (before[144:] != after[144:]).all()


def test_a_text_cut_short_has_the_scores_of_the_whole():
    # the rate follows the number of chunks, so the cut must leave that as it is
    text = make_text(190)
    cut = Text(text.tokens[:161], text.byte_counts[:160], 1)
    assert (adapt(text).nats[:144] == adapt(cut).nats[:144]).all()


def test_every_parameter_learns():
    network, fresh = make_network(), make_network()
    adapt(make_text(160), network)
    reached = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    before = dict(fresh.named_parameters())
    moved = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    assert moved >= reached
    assert {"embedding", "q", "k", "v", "o", "up", "down", "attn_scale"} <= moved


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_updates_are_sgd_on_the_mean_loss_of_their_sequences(clip_norm):
    network, text = make_network(), make_text(96)
    adapt(text, network, clip_norm=clip_norm, epochs=1, lr=0.004)
    expected = make_network()
    tokens = torch.from_numpy(text.tokens.astype(np.int64))
    options = Pass(order=expected.config.orders[-1])
    parameters = list(expected.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    for starts in ((0, 16), (32,)):
        inputs = torch.stack([tokens[s : s + 16] for s in starts])
        targets = torch.stack([tokens[s + 1 : s + 17] for s in starts])
        gradients = torch.autograd.grad(expected.nll(inputs, targets, options).mean(), parameters)
        norm = torch.stack([g.norm() for g in gradients]).norm().item()
        assert norm > 0.5
        scale = clip_norm / norm if clip_norm else 1.0
        with torch.no_grad():
            for p, v, g in zip(parameters, velocity, gradients, strict=True):
                v.mul_(0.9).add_(scale * g)
                p.sub_(0.004 * v)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, dict(expected.named_parameters())[name])


def test_rate_falls_as_a_cosine_over_the_chunks(monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1],
    )
    adapt(make_text(48 * 5), epochs=1, batch_sequences=3, lr=0.04)
    expected = 0.02 * (1 + np.cos(np.pi * np.arange(4) / 4))
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_weights_stay_as_they_were_when_an_update_is_refused():
    text, network = make_text(170), make_network()
    scorer = Scorer(network, text, Session(ALONE), length=WINDOW, rows=5)
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(LedgerError):
        SgdTrainer(scorer, make_config()).train(Lesson.of_targets(range(48)), progress=0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))

"""A shared adapter that learns from each scored batch: equal to a plain loop, and causal."""

import numpy as np
import pytest
import torch
from scoring_case import (
    ALONE,
    STRIDE,
    VOCAB,
    WINDOW,
    make_lora_config,
    make_network,
    make_text,
    score_strided,
)

from paramgolf.scoring.evaluation import score_and_adapt
from paramgolf.scoring.ledger import LedgerError
from paramgolf.scoring.lora_adapter import LoraTrainer
from paramgolf.scoring.lora_stream import StreamScorer
from paramgolf.scoring.session import Session
from paramgolf.scoring.text import Text
from paramgolf.scoring.windows import sliding_windows


def adapt(text, runtime=ALONE, network=None, adapter=None, **changes):
    config = make_lora_config("lora_stream", adapter, **changes)
    return score_and_adapt(network or make_network(), text, config, Session(runtime))


def test_scores_are_those_of_a_plain_loop():
    text, network = make_text(90), make_network().requires_grad_(False)
    learner = LoraTrainer(network, make_lora_config("lora_stream").adapter, rows=1)
    tokens = torch.from_numpy(text.tokens.astype(np.int64))
    # chunks of 48: the first window whole, then batches of at most 5 windows of 4 targets
    batches = [(0, 16), (16, 36), (36, 48), (48, 68), (68, 88), (88, 90)]
    expected = []
    for first, last in batches:
        scores = []
        for target in range(first, last, WINDOW if first == 0 else STRIDE):
            end = min(target + (WINDOW if first == 0 else STRIDE), last)
            start = 0 if first == 0 else target - (WINDOW - STRIDE)
            inputs, targets = tokens[start:end], tokens[start + 1 : end + 1]
            nats = network.nll(inputs[None], targets[None], learner.options())[0]
            scores.append(nats[target - start :])
        nats = torch.cat(scores)
        expected.append(nats.detach())
        nats.mean().backward()
        learner.step()
    np.testing.assert_allclose(adapt(text).nats, torch.cat(expected), atol=2e-4)


def test_rate_zero_scores_as_the_sliding_window_does():
    text = make_text(170)
    fixed = score_strided(text)
    np.testing.assert_allclose(adapt(text, adapter={"lr": 0.0}).nats, fixed.nats, atol=1e-5)


def test_learning_helps_on_a_text_that_repeats_itself():
    tokens = np.tile(make_text(24).tokens[:24], 20)
    text = Text(tokens, np.ones(len(tokens) - 1, dtype=np.uint16), 1)
    assert adapt(text).nats.sum() < 0.9 * adapt(text, adapter={"lr": 0.0}).nats.sum()


def test_the_record_of_updates():
    verdict = adapt(make_text(90)).close()
    assert verdict["score_first"]
    assert (verdict["entries"], verdict["updates"], verdict["targets_trained"]) == (6, 5, 88)


def test_the_adapter_begins_anew():
    text = make_text(170)
    always, anew = adapt(text), adapt(text, adapter={"reset_chunks": 2})
    assert (always.nats[:96] == anew.nats[:96]).all()
    assert (always.nats[96:] != anew.nats[96:]).mean() > 0.99
    fixed = score_strided(text)
    np.testing.assert_allclose(anew.nats[96:116], fixed.nats[96:116], atol=1e-5)


def test_the_same_run_gives_the_same_bits():
    text = make_text(120)
    assert (adapt(text).nats == adapt(text).nats).all()


@pytest.mark.parametrize("position", [15, 47, 60, 100])
def test_no_past_score_moves_with_a_future_token(position):
    text = make_text(160)
    tokens = text.tokens.copy()
    tokens[position] = 2 + (tokens[position] - 1) % (VOCAB - 2)
    before = adapt(text).nats
    after = adapt(Text(tokens, text.byte_counts, 1)).nats
    assert (before[: position - 1] == after[: position - 1]).all()
    assert (before[144:] != after[144:]).all()


def test_a_batch_is_scored_once():
    text, config = make_text(90), make_lora_config("lora_stream")
    scorer = StreamScorer(make_network(), text, config, Session(ALONE))
    first = sliding_windows(len(text), WINDOW, STRIDE)[:1]
    scorer.run(first)
    with pytest.raises(LedgerError, match="scored a second time"):
        scorer.run(first)

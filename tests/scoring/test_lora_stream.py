"""A shared adapter that learns from each scored batch: equal to a plain loop, and causal."""

import numpy as np
import pytest
import torch
from scoring_case import (
    ALONE,
    SLIDING,
    STRIDE,
    WINDOW,
    evaluated,
    make_lora_config,
    make_network,
    make_text,
    with_token,
)

from paramgolf.scoring.ledger import LedgerError
from paramgolf.scoring.lora_adapter import LoraTrainer
from paramgolf.scoring.lora_stream import StreamScorer
from paramgolf.scoring.session import Session
from paramgolf.scoring.text import Text
from paramgolf.scoring.windows import sliding_windows


def adapt(text, adapter=None, stream=None, **changes):
    config = make_lora_config("lora_stream", adapter, stream=stream, **changes)
    return evaluated(make_network(), text, config)


@pytest.mark.parametrize(
    "adapter", [{}, {"per_layer": True, "init_std": 0.1}, {"per_layer": True, "last_layers": 2}]
)
@pytest.mark.parametrize(
    "stream", [{}, {"learn": "window"}, {"reset_batches": 2, "temperature": 0.9}]
)
def test_scores_are_those_of_a_plain_loop(stream, adapter):
    text, network = make_text(90), make_network().requires_grad_(False)
    found = adapt(text, stream=stream, adapter=adapter).nats
    config = make_lora_config("lora_stream", adapter, stream=stream)
    trainer, stream = LoraTrainer(network, config.adapter, rows=1), config.stream
    tokens = torch.from_numpy(text.tokens.astype(np.int64))
    windows = sliding_windows(len(text), WINDOW, STRIDE)
    expected = []
    for number, begin in enumerate(range(0, len(windows), 5)):
        if stream.reset_batches and number % stream.reset_batches == 0:
            trainer = LoraTrainer(network, config.adapter, rows=1)
        batch, losses = windows[begin : begin + 5], []
        for start, first, stop in zip(batch.start, batch.first, batch.stop, strict=True):
            inputs, targets = tokens[start:stop][None], tokens[start + 1 : stop + 1]
            logits = network.logits(inputs, trainer.options())[0]
            nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            losses.append(nats if stream.learn == "window" else nats[first - start :])
            heat = stream.temperature if trainer.steps else 1.0
            scores = -(logits.detach() / heat).log_softmax(-1).gather(1, targets[:, None])[:, 0]
            expected.append(scores[first - start :])
        torch.cat(losses).mean().backward()
        trainer.step()
    np.testing.assert_allclose(found, torch.cat(expected), atol=2e-4)


def test_a_pair_for_each_layer_serves_all_of_its_visits():
    network = make_network()
    config = make_lora_config("lora_stream", {"per_layer": True, "init_std": 0.1}).adapter
    trainer = LoraTrainer(network, config, rows=1)
    assert trainer.adapters.a["q"].shape[1] == network.config.layers
    a = trainer.options().adapters["q"].a[0]
    order = network.config.orders[-1]
    assert len(a) == len(order) > network.config.layers
    for visit, layer in enumerate(order):
        assert torch.equal(a[visit], trainer.adapters.a["q"][0, layer])
    assert a.std().item() == pytest.approx(0.1, rel=0.2)


def test_rate_zero_scores_as_the_sliding_window_does():
    text = make_text(170)
    fixed = evaluated(make_network(), text, SLIDING)
    np.testing.assert_allclose(adapt(text, adapter={"lr": 0.0}).nats, fixed.nats, atol=1e-5)


def test_learning_helps_on_a_text_that_repeats_itself():
    tokens = np.tile(make_text(24).tokens[:24], 20)
    text = Text(tokens, np.ones(len(tokens) - 1, dtype=np.uint16), 1)
    assert adapt(text).nats.sum() < 0.9 * adapt(text, adapter={"lr": 0.0}).nats.sum()


def test_the_record_of_updates():
    verdict = adapt(make_text(90)).close()
    assert verdict["score_first"]
    # 20 windows: 16 targets, then 4 each; nothing is learned from the last 5 of them
    assert (verdict["entries"], verdict["updates"], verdict["targets_trained"]) == (4, 3, 72)


def test_the_adapter_begins_anew():
    text = make_text(170)
    always, anew = adapt(text), adapt(text, stream={"reset_batches": 4})
    # 4 batches of 5 windows: 16 targets, then 19 times 4
    assert (always.nats[:92] == anew.nats[:92]).all()
    assert (always.nats[92:] != anew.nats[92:]).mean() > 0.99
    fixed = evaluated(make_network(), text, SLIDING)
    np.testing.assert_allclose(anew.nats[92:112], fixed.nats[92:112], atol=1e-5)


@pytest.mark.parametrize("position", [15, 47, 60, 100])
def test_no_past_score_moves_with_a_future_token(position):
    text = make_text(160)
    before = adapt(text).nats
    after = adapt(with_token(text, position)).nats
    assert (before[: position - 1] == after[: position - 1]).all()
    assert (before[144:] != after[144:]).all()


def test_a_batch_is_scored_once():
    text, config = make_text(90), make_lora_config("lora_stream")
    scorer = StreamScorer(make_network(), text, config, Session(ALONE))
    first = sliding_windows(len(text), WINDOW, STRIDE)[:1]
    scorer.run(first)
    with pytest.raises(LedgerError, match="scored a second time"):
        scorer.run(first)

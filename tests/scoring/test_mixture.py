"""Mixtures: normalized, of the past only, in scoring order; the formulas by hand."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from scoring_case import (
    ALONE,
    VOCAB,
    echoing_text,
    evaluated,
    make_config,
    make_lora_config,
    make_mixture,
    make_network,
    make_sliding,
    with_token,
)

from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.mixture import build_mixture
from paramgolf.scoring.text import Text, find_documents

KINDS = ("ngram", "blend", "tilt")
PHASES = {"phases": 2, "prefix_documents": 6, "batch_documents": 1}


def by_document(**documents):
    return make_lora_config("lora_documents", None, PHASES | documents, chunk_tokens=16, epochs=1)


CASES = {
    "strided": make_sliding(),
    "documents": make_sliding(mode="documents"),
    "sgd": make_config(),
    "lora_stream": make_lora_config("lora_stream"),
    "strict": by_document(order="stream"),
    "length": by_document(warm_a=True),
}


def score(text, mixture, case="strided"):
    config = dataclasses.replace(CASES[case], mixture=mixture)
    ledger = evaluated(make_network(), text, config)
    assert ledger.close()["score_first"]
    return ledger.nats


def followers(tokens, t, context):
    """Count what followed the `context` tokens before t earlier in the text."""
    seen = tokens[t - context : t]
    before = range(context, t) if t >= context else ()
    return Counter(tokens[s] for s in before if tokens[s - context : s] == seen)


def by_hand(text, blend):
    """Return the nats of a text by a formula of the network's chance, target and followers."""
    plain, tokens = score(text, make_mixture("none")), text.tokens.tolist()
    found = [
        blend(math.exp(-plain[t - 1]), token, {c: followers(tokens, t, c) for c in (1, 2, 3)})
        for t, token in enumerate(tokens[1:], start=1)
    ]
    assert (np.array(found) != np.exp(-plain)).sum() > 20
    return -np.log(found)


def test_ngrams_by_hand():
    def backed_off(p, token, after):
        known = [counts for _, counts in sorted(after.items()) if counts.total() >= 2]
        return 0.7 * p + 0.3 * known[-1][token] / known[-1].total() if known else p

    text = echoing_text(200)
    found = score(text, make_mixture("ngram", min_count=2))
    np.testing.assert_allclose(found, by_hand(text, backed_off), atol=1e-5)


def test_a_blend_by_hand():
    def blended(p, token, after):
        for context, counts in sorted(after.items()):
            if counts:
                misses = counts.total() - max(counts.values())
                odds = 0.3 * context**2 * counts.total() / (misses + 0.5)
                p = (p + odds * counts[token] / counts.total()) / (1 + odds)
        return p

    text = echoing_text(200)
    found = score(text, make_mixture("blend"))
    np.testing.assert_allclose(found, by_hand(text, blended), atol=1e-5)


def test_a_blend_leaves_the_network_its_share_after_many_repetitions():
    phrase = [*range(5, 15)]
    tokens = np.array([1, *300 * phrase, *phrase[:4], 3], dtype=np.uint16)
    text = Text(tokens, np.ones(len(tokens) - 1, dtype=np.uint16), 1)
    config = make_mixture("blend", contexts=(1, 2, 3, 4, 6, 8))
    mixture = build_mixture(text, config, Ledger(len(text)), padding=1, device=ALONE.device)
    last = torch.tensor([len(text) - 1])
    # no context has been followed by the last token: it has the network's chance, times its share
    times = {1: 300, 2: 300, 3: 300, 4: 300, 6: 299, 8: 299}
    odds = [config.weight * c**2 * n / 0.5 for c, n in times.items()]
    expected = 2.0 + sum(math.log1p(x) for x in odds)
    found = mixture.mixed(torch.tensor([2.0]), mixture.said[last], last)
    assert found.item() == pytest.approx(expected, rel=1e-5)


# sgd scores as strided does, and by documents the mixture is the same
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["strided", "lora_stream", "strict"])
def test_probabilities_over_the_vocabulary_add_up_to_one(kind, case):
    text = echoing_text(50)
    mixture = make_mixture(kind)
    moved = np.flatnonzero(score(text, mixture, case) != score(text, make_mixture("none"), case))
    position = moved[moved > 20][0]
    # what follows the position cannot matter, so it is cut off
    total = 0.0
    for token in range(VOCAB):
        tokens = text.tokens[: position + 2].copy()
        tokens[-1] = token
        cut = Text(tokens, text.byte_counts[: position + 1], 1)
        total += math.exp(-score(cut, mixture, case)[-1])
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["strided", "documents", "sgd", "lora_stream", "strict"])
def test_no_past_score_moves_with_a_future_token(kind, case):
    text = echoing_text(200)
    position = 101
    assert text.tokens[position] != 1
    before = score(text, make_mixture(kind), case)
    after = score(with_token(text, position), make_mixture(kind), case)
    assert (before[: position - 1] == after[: position - 1]).all()
    assert before[position - 1] != after[position - 1]


@pytest.mark.parametrize("kind", KINDS)
def test_by_length_the_past_is_what_is_scored_before(kind):
    text = echoing_text(200)
    start, stop = find_documents(text)
    ranking = np.argsort(start - stop, kind="stable")
    last = ranking[-5]
    position = int(stop[last]) - 1  # a token of a short document that stands early or late
    before = score(text, make_mixture(kind), "length")
    after = score(with_token(text, position), make_mixture(kind), "length")
    longer = np.concatenate([np.arange(start[i], stop[i]) for i in ranking[:-5]])
    assert (before[longer] == after[longer]).all()


def test_a_primer_counts_as_text_before_the_text_without_a_seam():
    text, primer = echoing_text(120), echoing_text(200).tokens[80:]
    mixture = make_mixture("ngram", contexts=(1, 2, 3))
    primed = dataclasses.replace(text, primer=primer)
    found = build_mixture(primed, mixture, Ledger(120), padding=1, device=ALONE.device)
    before, tokens = primer.tolist(), text.tokens.tolist()
    for t in range(1, len(tokens)):
        for context in (3, 2, 1):
            # a context lies in the primer or in the text, not in both
            places = [(before, s) for s in range(context, len(before))]
            places += [(tokens, s) for s in range(context, t)] if t >= context else []
            seen = tokens[t - context : t]
            after = Counter(x[s] for x, s in places if t >= context and x[s - context : s] == seen)
            if after:
                expected = after[tokens[t]] / after.total()
                break
        else:
            expected = 0.0
        assert found.said[t - 1] == pytest.approx(mixture.weight * expected)
        assert (found.left[t - 1] < 0) == bool(after)


def test_hints_make_a_text_that_repeats_itself_likelier():
    text = echoing_text(200)
    plain = score(text, make_mixture("none")).sum()
    assert score(text, make_mixture("tilt", contexts=(2,))).sum() < plain
    assert score(text, make_mixture("ngram", contexts=(2,))).sum() < plain


def test_a_tilt_by_hand():
    text = Text(np.array([1, 5, 6, 7, 5, 6, 7, 5], dtype=np.uint16), np.ones(7, dtype=np.uint16), 1)
    mixture = build_mixture(
        text, make_mixture("tilt", contexts=(1,)), Ledger(7), padding=1, device=ALONE.device
    )
    # targets 5 6 7 5 6 7 5: from the second 5 on the token before tells the next
    assert mixture.hint.tolist() == [-1, -1, -1, -1, 6, 7, 5, -1]
    logits = torch.randn(1, 1, VOCAB, generator=torch.Generator().manual_seed(0))
    tilted = logits.clone()
    tilted[..., 6] += 1.5
    for token in (6, 9):
        target = torch.tensor([[token]])
        nats = -logits.log_softmax(-1)
        found = mixture.tilted(nats[..., token], nats[..., 6], target, torch.tensor([[4]]))
        torch.testing.assert_close(found, -tilted.log_softmax(-1)[..., token])

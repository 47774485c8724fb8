"""Warming up: every shape that scoring needs, on random tokens, and nothing is touched."""

import collections
import dataclasses
import functools

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
)

from paramgolf.model.backend import Backend, compiled
from paramgolf.model.network import Network
from paramgolf.scoring import lora_documents, session
from paramgolf.scoring.session import Session
from paramgolf.scoring.text import Text

# compile is on, yet the network is not compiled: what is warmed up runs, and can be seen
WARM = dataclasses.replace(ALONE, compile=True)
CASES = {
    **{
        mode: make_sliding(mode=mode, row_windows=5)
        for mode in ("strided", "documents", "windowed")
    },
    "sgd": make_config(chunk_tokens=64, batch_sequences=3),
    "lora_stream": make_lora_config("lora_stream"),
    "lora_documents": make_lora_config(
        "lora_documents",
        documents={"phases": 1, "prefix_documents": 4, "batch_documents": 8, "chains": 1},
        chunk_tokens=32,
        batch_sequences=3,
    ),
    "last_layers": make_lora_config(
        "lora_documents", {"last_layers": 2}, {"batch_documents": 8, "chains": 1}
    ),
}


def score(case, text, runtime, kind="none", network=None):
    config = dataclasses.replace(CASES[case], mixture=make_mixture(kind))
    return evaluated(network or make_network(), text, config, Session(runtime))


@pytest.fixture
def passes(monkeypatch):
    """The passes of warming up and of scoring: their shapes, and the inputs of the first."""
    seen = {"shapes": {True: set(), False: set()}, "inputs": [], "warming": False}
    monkeypatch.setattr(lora_documents, "FEWEST_ROWS", 2)
    monkeypatch.setattr(lora_documents, "WIDTH_STEP", 4)
    warm_up, nll, logits = session.warm_up, Network.nll, Network.logits

    def watched(*arguments):
        seen["warming"] = True
        warm_up(*arguments)
        seen["warming"] = False

    def note(tokens, options, part):
        rows = None if options.adapters is None else len(options.adapters["q"].a)
        positions = torch.arange(tokens.shape[1])
        head = len(positions if part is None else positions[part])
        kind = (options.document_tokens, options.window, rows, torch.is_grad_enabled())
        seen["shapes"][seen["warming"]].add((tuple(tokens.shape), head, *kind))
        if seen["warming"]:
            seen["inputs"].append(tokens.clone())

    def noted_nll(self, tokens, targets, options, *, part=None):
        note(tokens, options, part)
        return nll(self, tokens, targets, options, part=part)

    def noted_logits(self, tokens, options, *, part=None):
        note(tokens, options, part)
        return logits(self, tokens, options, part=part)

    monkeypatch.setattr(session, "warm_up", watched)
    monkeypatch.setattr(Network, "nll", noted_nll)
    monkeypatch.setattr(Network, "logits", noted_logits)
    return seen


@pytest.mark.parametrize("kind", ["none", "tilt"])
@pytest.mark.parametrize("case", CASES)
def test_every_shape_is_warmed_up_and_none_in_vain(passes, case, kind):
    ledger = score(case, echoing_text(400), WARM, kind)
    warmed, scored = passes["shapes"][True], passes["shapes"][False]
    if case in ("lora_documents", "last_layers"):  # sizes are symbols, and phases not compiled
        adapted = {shape for shape in scored if shape[4] is not None}
        assert (adapted == scored) == (case == "last_layers")
        assert warmed == {min(adapted), max(adapted)}
    else:
        assert warmed == scored
    assert ledger.close()["score_first"]


@pytest.mark.parametrize("case", CASES)
def test_it_changes_no_bit_of_the_scores(case):
    text = echoing_text(300)
    warm, cold = score(case, text, WARM), score(case, text, ALONE)
    assert (warm.nats == cold.nats).all()
    assert warm.close() == cold.close()


@pytest.mark.parametrize("case", CASES)
def test_no_token_of_the_text_is_looked_at(passes, case):
    text = echoing_text(300)
    score(case, text, WARM)
    before = list(passes["inputs"])
    passes["inputs"].clear()
    # the same documents, other words
    tokens = np.where(text.tokens == 1, 1, 2 + (text.tokens + 7) % (VOCAB - 2)).astype(np.uint16)
    score(case, Text(tokens, text.byte_counts, 1), WARM)
    assert before
    assert len(before) == len(passes["inputs"])
    assert all(torch.equal(a, b) for a, b in zip(before, passes["inputs"], strict=True))


@pytest.mark.parametrize("case", ["sgd", "lora_documents"])
def test_weights_stay_as_they_are(monkeypatch, case):
    network = make_network()
    before = {name: p.clone() for name, p in network.named_parameters()}

    def stop(*_):
        raise InterruptedError

    monkeypatch.setattr(Session, "begin", stop)
    with pytest.raises(InterruptedError):
        score(case, echoing_text(300), WARM, network=network)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())


@pytest.mark.parametrize("case", ["documents", "sgd", "lora_documents", "last_layers"])
def test_nothing_is_compiled_once_scoring_has_begun(monkeypatch, case):
    """Guards are the real ones, in bfloat16 as on a GPU; only the code that is made is not."""
    monkeypatch.setattr(lora_documents, "FEWEST_ROWS", 2)
    monkeypatch.setattr(lora_documents, "WIDTH_STEP", 4)
    graphs = torch._dynamo.utils.counters["stats"]
    compile_as_is = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compile_as_is)
    torch._dynamo.reset()
    network = make_network().with_backend(compiled(Backend(dtype=torch.bfloat16)))
    counts, warm_up = [], session.warm_up

    def watched(*arguments):
        warm_up(*arguments)
        counts.append(graphs["unique_graphs"])

    monkeypatch.setattr(session, "warm_up", watched)
    before = graphs["unique_graphs"]
    score(case, echoing_text(400), WARM, network=network)
    assert counts[0] > before
    assert graphs["unique_graphs"] == counts[0]


@pytest.mark.parametrize(
    ("last_layers", "expected"),
    [
        # the first block, whose lane has no gradient; one without a skip; one with it
        (None, {"block": 3}),
        (3, {"block": 1}),
    ],
)
def test_documents_of_all_lengths_share_graphs(monkeypatch, passes, last_layers, expected):
    """Many shapes of passes compile each function once, and score as uncompiled ones do."""
    made, compile_as_is = collections.Counter(), torch.compile

    def counted(function, **options):
        def backend(graph, _):
            made[function.__name__] += 1
            return graph.forward

        return compile_as_is(function, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", counted)
    torch._dynamo.reset()
    documents = {"batch_documents": 4, "chains": 1, "chunk_tokens": 6}
    config = make_lora_config("lora_documents", {"last_layers": last_layers}, documents)
    monkeypatch.setitem(CASES, "lora_documents", config)
    # three layers in each half, so that each kind of block has adapters of several layers
    plain = make_network(layers=6, recurrence=[], smear="token", parallel="none")
    plain = plain.with_backend(Backend(dtype=torch.bfloat16))
    network, text = plain.with_backend(compiled(plain.backend)), echoing_text(300)
    nats = score("lora_documents", text, WARM, network=network).nats
    assert len(passes["shapes"][False]) == 5
    assert made == expected
    uncompiled = score("lora_documents", text, ALONE, network=plain).nats
    np.testing.assert_allclose(nats, uncompiled, atol=0.05)

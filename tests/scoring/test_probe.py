"""What an evaluation finds when it probes its own passes: nothing wrong, or what was planted."""

import dataclasses

import numpy as np
import pytest
from scoring_case import (
    ALONE,
    STRIDE,
    echoing_text,
    evaluated,
    make_config,
    make_lora_config,
    make_mask,
    make_mixture,
    make_network,
    make_sliding,
)

from paramgolf.scoring.probe import PROBED, Probe, count_followers
from paramgolf.scoring.session import Session

CASES = ("strided", "documents", "windowed", "sgd", "lora_stream", "lora_documents", "last_layers")


class Probing(Session):
    def __init__(self, runtime):
        super().__init__(runtime)
        self.own = Probe()

    def after(self, scorer, done, total):
        self.own.plan(done, total)

    def probe(self, scorer, batch):
        return self.own(scorer, batch)


def probe(case, kind, network=None, **changes):
    """Return what is found, and the scores."""
    text, session = echoing_text(400), Probing(ALONE)
    network = network or make_network()
    if case in ("strided", "documents", "windowed"):
        config = make_sliding(kind, mode=case, **changes)
    else:
        adapter = {"last_layers": 2} if case == "last_layers" else {}
        mode = case if case != "last_layers" else "lora_documents"
        config = make_lora_config(mode, adapter, mixture=make_mixture(kind), batch_windows=3)
    ledger = evaluated(network, text, config, session)
    ledger.close()
    return session.own.found, ledger.nats


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["none", "ngram", "blend", "tilt"])
@pytest.mark.parametrize("case", CASES)
def test_every_way_of_scoring_passes_the_probe(case, kind, masked):
    network = make_network()
    found, _ = probe(
        case, kind, network.with_mask(make_mask(echoing_text(400))) if masked else network
    )
    assert found["passes"] >= 1
    assert found["positions"] >= 16
    assert found["causal_error"] == 0
    assert found["sum_error"] < 1e-6
    assert found["score_error"] < 1e-5


def test_examining_changes_no_score():
    text, config = echoing_text(400), make_config()
    plain = evaluated(make_network(), text, config)
    found, nats = probe("sgd", "none")
    assert found["passes"] > 3
    other = evaluated(make_network(), text, make_config(batch_windows=3))
    assert (nats == other.nats).all()
    np.testing.assert_allclose(nats, plain.nats, atol=1e-4)


@pytest.mark.parametrize("stride", [STRIDE, 1])
def test_a_network_that_sees_the_future(stride):
    network = make_network()
    attend = network.backend.attend

    def look_ahead(q, k, v, segments=None):
        return attend(q, k, v, segments) + 1e-2 * v.mean(1, keepdim=True).repeat(1, 1, 2, 1)

    network = network.with_backend(dataclasses.replace(network.backend, attend=look_ahead))
    assert probe("strided", "none", network, stride=stride)[0]["causal_error"] > 1e-3


def test_an_evaluation_of_one_pass_is_probed():
    found, _ = probe("windowed", "none", row_windows=30, batch_windows=30)
    assert found["passes"] == 1
    assert found["score_error"] < 1e-5


@pytest.mark.parametrize(("items", "every"), [(782, 1), (782, 64), (100, 8)])
def test_probes_are_as_many_however_seldom_processes_meet(items, every):
    own, planned = Probe(), 0
    for done in range(every, items + 1, every):
        own._countdown = 0
        own.plan(done, items)
        planned += own._countdown > 0
    assert planned >= min(PROBED, items // every) - 1


def test_what_all_processes_found_is_one_finding():
    own, keys = Probe(), Probe().found.keys()
    own.found = dict(zip(keys, (1, 10, 0.75, 0.125, 1.0), strict=True))
    other = dict(zip(keys, (3, 20, 0.5, 0.25, 4.0), strict=True))

    class OneOfTwo:
        def gather(self, found):
            return [found, other]

    assert own.over(OneOfTwo()) == {
        "passes": 4,
        "positions": 30,
        "causal_error": 0.75,
        "sum_error": 0.25,
        "score_error": 3.0,
    }


@pytest.mark.parametrize(("at", "primed"), [(1, 0), (5, 0), (9, 4), (12, 4)])
def test_a_context_longer_than_the_text_counts_nothing(at, primed):
    tokens = np.array([3, 4, 3, 4, 3, 4, 3, 4, 3, 4, 3, 4, 3])
    short, long = (make_mixture("ngram", contexts=some) for some in ((1, 2), (1, 2, 2**40)))
    expected = count_followers(tokens, primed, at, short, 5)
    assert count_followers(tokens, primed, at, long, 5).tolist() == expected.tolist()

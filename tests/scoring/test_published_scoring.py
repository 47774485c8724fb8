"""Evaluations of the published systems: scores, and what was learned, as their own code gives."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from published_case import FIXTURES, facts, given, network_of, shrunk, slice_sums, tensors
from recipe_case import recipe
from safetensors import safe_open
from scoring_case import ALONE

from paramgolf.model.network import Network, Pass
from paramgolf.recipes import Params
from paramgolf.scoring.config import TttConfig
from paramgolf.scoring.document_plan import Phase
from paramgolf.scoring.evaluation import score_and_adapt
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.lora_documents import DocumentScorer, phase_lesson
from paramgolf.scoring.lora_stream import StreamScorer
from paramgolf.scoring.mixture import build_mixture
from paramgolf.scoring.past_counts import past_counts
from paramgolf.scoring.session import Session
from paramgolf.scoring.sgd import Lesson
from paramgolf.scoring.sliding import score_text
from paramgolf.scoring.text import Text, find_documents
from paramgolf.scoring.windows import sliding_windows

# nats: differences of rounding, and after steps of AdamW or many of SGD
NATS, SGD, FAST, LORA = 1e-4, 2e-4, 1e-3, 1e-3
WEIGHTS = 1e-4  # of the largest norm
DOCUMENTS = ("pr1855", "pr2135")


@cache
def sizes(name: str) -> dict[str, float]:
    """The sizes and rates of a system's evaluation at the fixtures' shape."""
    with safe_open(FIXTURES / name / "evaluation.safetensors", "np") as file:
        return {k: float(v) for k, v in file.metadata().items() if k != "system"}


def evaluation_text(name: str, targets: int | None = None) -> Text:
    tokens = tensors(name, "evaluation")["tokens"].numpy().astype(np.uint16)
    tokens = tokens if targets is None else tokens[: targets + 1]
    return Text(tokens, np.ones(len(tokens) - 1, dtype=np.uint16), 1)


def network(name: str, params: Params) -> Network:
    return network_of(params, given(name, "network", "weights."))


def expected(name: str, key: str) -> np.ndarray:
    return tensors(name, "evaluation")[key].numpy()


def assert_weights(name: str, found: Network, key: str, kind: str, start: Network | None = None):
    """Sums over the weights, or over what they moved by, are the published ones."""
    tensors_now = dict(found.named_parameters())
    if start is not None:
        first = dict(start.named_parameters())
        tensors_now = {n: p.detach() - first[n].detach() for n, p in tensors_now.items()}
    known = given(name, "evaluation", f"{key}.{kind}_")
    for parameter, (norms, products) in slice_sums(found, tensors_now).items():
        largest = known[f"norm.{parameter}"].abs().max()
        for sums, which in ((norms, "norm"), (products, "dot")):
            off = (sums - known[f"{which}.{parameter}"]).abs().max()
            assert off <= WEIGHTS * largest, (parameter, which)


@pytest.mark.parametrize("name", ["pr1204", "pr1296", "pr1392", "pr1499"])
def test_windows_are_the_published_ones_but_no_target_is_scored_twice(name):
    known = facts(name, "windows")
    for case in known["texts"]:
        windows = sliding_windows(case["targets"], known["window_tokens"], known["stride_tokens"])
        ours = np.stack([windows.start, windows.first, windows.stop], axis=1).tolist()
        theirs = case["windows"]
        if name == "pr1296":
            assert ours == theirs
        # theirs begin at the same tokens, and those that end inside the text score the same
        assert [w[0] for w in ours] == [w[0] for w in theirs][: len(ours)]
        inside = [w for w in ours if w[2] < case["targets"]]
        assert inside == theirs[: len(inside)]
        again = sum(w[2] - w[1] for w in theirs) - case["targets"]
        assert again == case["scored_more_than_once"]
        assert (again > 0) == (name != "pr1296" and len(theirs) > 1)


class TestSlidingAndSgd:
    """pg#1493: windows of the stream, and SGD on each chunk once it is scored."""

    name = "pr1493"

    def config(self, **changes) -> TttConfig:
        known, base = sizes(self.name), shrunk(self.name).eval_ttt
        return dataclasses.replace(
            base,
            window=int(known["window"]),
            stride=int(known["stride"]),
            chunk_tokens=int(known["chunk_tokens"]),
            batch_sequences=int(known["batch_sequences"]),
            **changes,
        )

    def test_windows_are_the_published_ones(self):
        config = self.config()
        windows = sliding_windows(len(evaluation_text(self.name)), config.window, config.stride)
        found = np.stack([windows.start, windows.first, windows.stop], axis=1)
        assert found.tolist() == expected(self.name, "windows").tolist()

    def test_sliding_scores_are_the_published_ones(self):
        config, params = self.config(), shrunk(self.name)
        sliding = dataclasses.replace(
            params.eval_sliding, window=config.window, stride=config.stride
        )
        text = evaluation_text(self.name)
        ledger = score_text(network(self.name, params), text, sliding, Session(ALONE))
        assert np.abs(ledger.nats - expected(self.name, "sliding.nats")).max() < NATS

    @pytest.mark.parametrize(("key", "tolerance"), [("sgd", SGD), ("fast", FAST)])
    def test_scores_and_weights_of_sgd_are_the_published_ones(self, key, tolerance):
        params = shrunk(self.name)
        known = sizes(self.name)
        rate = known["rate" if key == "sgd" else "fast_rate"]
        config = self.config(lr=rate)
        assert [getattr(config, k) for k in ("epochs", "momentum", "clip_norm")] == [
            known[k] for k in ("epochs", "momentum", "clip_norm")
        ]
        learned = network(self.name, params)
        ledger = score_and_adapt(learned, evaluation_text(self.name), config, Session(ALONE))
        assert np.abs(ledger.nats - expected(self.name, f"{key}.nats")).max() < tolerance
        assert_weights(self.name, learned, key, "final")
        assert_weights(self.name, learned, key, "moved", network(self.name, params))


class GivenStream(StreamScorer):
    """A scorer whose adapter begins with a given A after each reset."""

    def reset(self) -> None:
        self.resets = getattr(self, "resets", -1) + 1
        known = given("pr1499", "evaluation", "adapter_a.")
        # there x A, here x a^T
        self.trainer.renew({name: a[self.resets].mT[None] for name, a in known.items()})


class TestStream:
    """pg#1499: one adapter along the stream, reset after some batches, and counts of n-grams."""

    name = "pr1499"

    @pytest.mark.parametrize(
        ("key", "rate", "tolerance"), [("", 3e-4, NATS), ("fast.", 3e-2, FAST)]
    )
    def test_scores_are_the_published_ones(self, key, rate, tolerance):
        params, text = shrunk(self.name), evaluation_text(self.name)
        base = params.eval_ttt
        assert base.adapter.lr == 3e-4
        config = dataclasses.replace(
            base,
            window=64,
            stride=16,
            batch_windows=4,
            adapter=dataclasses.replace(base.adapter, lr=rate),
            mixture=dataclasses.replace(base.mixture, kind="none"),
        )
        scorer = GivenStream(network(self.name, params), text, config, Session(ALONE))
        for item in scorer.plan(sliding_windows(len(text), config.window, config.stride)):
            scorer.run(item)
        # theirs scores the last targets several times; the first time counts here
        once = expected(self.name, f"{key}nats")[: len(text)]
        targets = expected(self.name, "target_index")[: len(text)]
        assert targets.tolist() == list(range(1, len(text) + 1))
        assert np.abs(scorer.ledger.nats - once).max() < tolerance

    def test_counts_of_n_grams_are_the_published_ones(self):
        tokens = tensors(self.name, "evaluation")["ngram.tokens"]
        length, same, total = (torch.zeros(len(tokens) - 1, dtype=torch.int64) for _ in range(3))
        for context in sorted(recipe(self.name).eval_ttt.mixture.contexts, reverse=True):
            past = past_counts(tokens, context)
            new = (length == 0) & (past.total[1:] > 0)
            length[new], same[new], total[new] = context, past.same[1:][new], past.total[1:][new]
        for found, key in ((length, "length"), (same, "same"), (total, "total")):
            assert (found == tensors(self.name, "evaluation")[f"ngram.{key}"]).all(), key


def test_hints_and_tilted_scores_are_the_published_ones():
    """pg#2135: the tokens of a text in its order, and nats of targets and hints that are given."""
    known = given("pr2135", "evaluation", "tilt.")
    tokens = known["tokens"].numpy().astype(np.uint16)
    text = Text(tokens, np.ones(len(tokens) - 1, dtype=np.uint16), 1)
    mixing = recipe("pr2135").eval_ttt.mixture
    mixture = build_mixture(text, mixing, Ledger(len(text)), padding=0, device=torch.device("cpu"))
    assert (mixture.hint == known["hint"]).all()
    targets, index = known["tokens"][1:], torch.arange(len(text))
    found = mixture.tilted(known["nats"], known["hint_nats"], targets, index)
    assert (found - known["tilted_nats"]).abs().max() < 1e-6


class GivenStart(DocumentScorer):
    """A scorer whose adapters begin with a given A, and that keeps the weights after each phase.

    Phases learn with both softcaps at 30, which the published loss of training has as a constant.
    """

    first: dict[str, torch.Tensor]
    cold = False  # each batch begins with that A, whatever was handed on

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.learned: list[dict[str, torch.Tensor]] = []
        renew = self.trainer.renew
        self.trainer.renew = lambda a=None: renew(self.first if self.cold or a is None else a)

    def train(self, lesson: Lesson) -> None:
        caps = dict(self.network.named_parameters()).get("softcaps")
        kept = None if caps is None else caps.detach().clone()
        if caps is not None:
            caps.data.fill_(30.0)
        super().train(lesson)
        if caps is not None:
            caps.data.copy_(kept)
        self.learned.append({n: p.clone() for n, p in self.network.named_parameters()})


def documents_config(name: str, *, phases: bool) -> TttConfig:
    """The recipe's evaluation as published, at the sizes of the fixtures, by one process."""
    known, base = sizes(name), shrunk(name).eval_ttt
    adapter = dataclasses.replace(
        base.adapter,
        rank=int(known["rank"]),
        lr=known["lora_rate"],
        eps=known["eps"],
    )
    assert (adapter.alpha, adapter.decay) == (known["alpha"], known["decay"])
    assert (adapter.beta1, adapter.beta2) == (known["beta1"], known["beta2"])
    assert base.documents.warm_a
    assert base.documents.phases == known["phases"]
    documents = dataclasses.replace(
        base.documents,
        batch_documents=int(known["batch_documents"]),
        chains=1,
        chunk_tokens=int(known["chunk_tokens"]),
        phases=base.documents.phases * phases,
        prefix_documents=int(known["prefix_documents"]),
        last_window="full",
        idle_decay=True,
        repeat_bos=True,
    )
    return dataclasses.replace(
        base,
        window=int(known["window"]),
        stride=int(known["window"]),
        chunk_tokens=int(known["phase_chunk_tokens"]),
        batch_sequences=int(known["phase_batch_sequences"]),
        lr=known["phase_rate"],
        adapter=adapter,
        documents=documents,
        mixture=dataclasses.replace(base.mixture, kind="none"),
    )


def score_by_documents(
    name: str, *, phases: bool = False, cold: bool = False, targets: int | None = None
) -> GivenStart:
    """Score a system's text document by document, from the A that its fixtures give."""
    text, params = evaluation_text(name, targets), shrunk(name)
    given_a = {key: a[None] for key, a in given(name, "evaluation", "a.").items()}
    kind = type("GivenA", (GivenStart,), {"first": given_a, "cold": cold})
    config = documents_config(name, phases=phases)
    scorer = kind(network(name, params), text, config, Session(ALONE))
    for item in scorer.items:
        scorer.run(item)
    return scorer


class TestDocuments:
    """pg#1855, pg#2135: an adapter for each document, and phases of training the whole model."""

    @pytest.mark.parametrize("name", DOCUMENTS)
    def test_plain_scores_in_packed_rows_are_the_published_ones(self, name):
        params, tokens = shrunk(name), tensors(name, "evaluation")["tokens"]
        length = int(tensors(name, "evaluation")["validation.row_tokens"])
        nats = expected(name, "validation.nats")
        options = Pass(params.model.orders[-1], document_tokens=int(sizes(name)["window"]))
        rows = (tokens[:-1], tokens[1:])
        inputs, targets = (x[: len(nats)].view(-1, length) for x in rows)
        with torch.no_grad():
            found = network(name, params).nll(inputs, targets, options).flatten()
        assert np.abs(found.numpy() - nats).max() < NATS

    @pytest.mark.parametrize("name", DOCUMENTS)
    def test_a_document_alone_scores_as_published(self, name):
        start, _ = find_documents(evaluation_text(name))
        scorer = score_by_documents(name, cold=True, targets=int(start[9]))
        nats = expected(name, "fresh.nats")[: start[9]]
        assert np.abs(scorer.ledger.nats - nats).max() < LORA

    @pytest.mark.parametrize("name", ["pr2135"])
    def test_documents_with_a_warm_a_score_as_published(self, name):
        found = score_by_documents(name).ledger.nats
        assert np.abs(found - expected(name, "lora.nats")).max() < LORA

    @pytest.mark.parametrize("name", ["pr1855"])
    def test_scores_and_weights_with_phases_are_the_published_ones(self, name):
        scorer = score_by_documents(name, phases=True)
        assert np.abs(scorer.ledger.nats - expected(name, "phases.nats")).max() < LORA
        assert len(scorer.learned) == sizes(name)["phases"]
        for index, weights in enumerate(scorer.learned, start=1):
            scorer.network.load_state_dict(weights)
            assert_weights(name, scorer.network, f"phases.phase{index}", "final")

    @pytest.mark.parametrize("name", DOCUMENTS)
    def test_phases_learn_from_the_published_streams(self, name):
        text = evaluation_text(name)
        config = documents_config(name, phases=True)
        scorer = DocumentScorer(network(name, shrunk(name)), text, config, Session(ALONE))
        phases = [item for item in scorer.items if isinstance(item, Phase)]
        assert len(phases) == sizes(name)["phases"]
        for index, phase in enumerate(phases, start=1):
            lesson = phase_lesson(phase, repeat_bos=True)
            stream = expected(name, f"phases.phase{index}.stream").tolist()
            assert text.tokens[lesson.inputs].tolist() == stream[:-1]
            assert text.tokens[lesson.targets].tolist() == stream[1:]

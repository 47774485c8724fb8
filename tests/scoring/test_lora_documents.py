"""An adapter a document: equal to a plain loop, score-first, causal, the same for any batches."""

import dataclasses

import numpy as np
import pytest
import torch
from scoring_case import (
    ALONE,
    STRIDE,
    WINDOW,
    adapt_plainly,
    evaluated,
    make_lora_config,
    make_network,
    make_text,
    with_token,
)

from paramgolf.model.network import Pass
from paramgolf.runtime import Runtime
from paramgolf.scoring import lora_documents
from paramgolf.scoring.document_plan import DocumentBatch, plan_documents
from paramgolf.scoring.ledger import LedgerError, expand_ranges
from paramgolf.scoring.lora_documents import DocumentScorer
from paramgolf.scoring.session import Session
from paramgolf.scoring.sgd import Lesson
from paramgolf.scoring.text import Text, find_documents

WARM = {"warm_a": True, "batch_documents": 2}
# AdamW's step follows the sign of a gradient above eps: rounding shows unless eps is large
SMOOTH = {"eps": 1e-3}
PHASES = {"phases": 2, "prefix_documents": 10, "batch_documents": 2}
# in all layers; in the last of the order 0, 1, 1, 2, so that those below run once a token
everywhere = pytest.mark.parametrize("adapter", [{}, {"last_layers": 2, **SMOOTH}])


def adapt(text, runtime=ALONE, network=None, documents=None, adapter=None, **changes):
    config = make_lora_config("lora_documents", adapter, documents, **changes)
    return evaluated(network or make_network(), text, config, Session(runtime))


def test_each_document_scores_as_it_does_in_a_plain_loop():
    text, config = make_text(200), make_lora_config("lora_documents", SMOOTH)
    ledger = adapt(text, adapter=SMOOTH)
    for first, last in zip(*find_documents(text), strict=True):
        expected = adapt_plainly(make_network(), text, first, last, config)
        np.testing.assert_allclose(ledger.nats[first:last], expected, atol=1e-4)


def test_rate_zero_scores_as_the_unadapted_network():
    text, network = make_text(150), make_network()
    tokens = torch.from_numpy(text.tokens.astype(np.int64))
    nats = adapt(text, adapter={"lr": 0.0}).nats
    options = Pass(network.config.orders[-1])
    for first, last in zip(*find_documents(text), strict=True):
        for begin in range(first, last, 6):
            context, end = max(first, begin - 10), min(begin + 6, last)
            inputs, targets = tokens[context:end][None], tokens[context + 1 : end + 1][None]
            with torch.no_grad():
                expected = network.nll(inputs, targets, options)[0, begin - context :]
            np.testing.assert_allclose(nats[begin:end], expected, atol=1e-5)


@pytest.mark.parametrize("last_layers", [None, 2])
def test_learning_helps_on_documents_that_repeat_themselves(last_layers):
    document = np.concatenate([[1], np.tile([9, 5, 30, 7, 44, 12], 10)])
    tokens = np.tile(document, 3).astype(np.uint16)
    text = Text(tokens, np.ones(len(tokens) - 1, dtype=np.uint16), 1)
    learned, fixed = (
        adapt(text, adapter={"last_layers": last_layers, **rate}) for rate in ({}, {"lr": 0.0})
    )
    assert learned.nats.sum() < 0.9 * fixed.nats.sum()


@everywhere
@pytest.mark.parametrize(
    "changes", [{"batch_documents": 1}, {"batch_documents": 32}, {"chains": 5}, {"order": "stream"}]
)
def test_neither_batches_nor_chains_nor_order_change_a_document(changes, adapter):
    text = make_text(200)
    both = (adapt(text, documents=some, adapter=adapter).nats for some in (changes, {}))
    np.testing.assert_allclose(*both, atol=2e-4)


@everywhere
@pytest.mark.parametrize("documents", [{}, WARM])
def test_dropping_rows_and_rounding_widths_change_nothing(monkeypatch, documents, adapter):
    text = make_text(400)
    documents = {**documents, "batch_documents": 8, "chains": 1}
    with monkeypatch.context() as patch:
        patch.setattr(lora_documents, "FEWEST_ROWS", 1000)
        whole = adapt(text, documents=documents, adapter=adapter).nats
    monkeypatch.setattr(lora_documents, "FEWEST_ROWS", 2)
    monkeypatch.setattr(lora_documents, "WIDTH_STEP", 4)
    found = adapt(text, documents=documents, adapter=adapter).nats
    np.testing.assert_allclose(found, whole, atol=2e-4)


def test_no_width_is_rounded_where_a_rows_length_decides_the_rotary_base(monkeypatch):
    network, found = make_network(rope_trained_length=6), []
    for step in (1, 256):
        monkeypatch.setattr(lora_documents, "WIDTH_STEP", step)
        found.append(adapt(make_text(200), network=network).nats)
    assert (found[0] == found[1]).all()


def test_widths_are_rounded_up_but_never_beyond_the_window():
    widths = [lora_documents.round_width(width, 2048, 256) for width in (48, 256, 257, 1025, 2048)]
    assert widths == [256, 256, 512, 1280, 2048]
    assert lora_documents.round_width(300, 400, 256) == 400


@pytest.mark.parametrize("documents", [{}, WARM, PHASES, {**PHASES, "order": "stream"}])
def test_the_same_run_gives_the_same_bits(documents):
    text = make_text(200)
    assert (adapt(text, documents=documents).nats == adapt(text, documents=documents).nats).all()


@everywhere
def test_the_record_of_updates(adapter):
    text = make_text(200)
    ledger, config = adapt(text, adapter=adapter), make_lora_config("lora_documents").documents
    start, stop = find_documents(text)
    lengths = stop - start
    verdict = ledger.close()
    assert verdict["scored_once"]
    assert verdict["score_first"]
    # all chunks but a document's last are learned from
    assert verdict["targets_trained"] == (6 * ((lengths - 1) // 6)).sum()
    batches = plan_documents(start, stop, config, WINDOW)
    assert verdict["updates"] == sum(batch.chunks - 1 for batch in batches)
    assert verdict["entries"] == sum(batch.chunks for batch in batches)


def test_a_warm_a_goes_on_to_the_next_full_batch_of_the_chain_only():
    text = make_text(300)
    cold, warm = adapt(text, documents={"batch_documents": 2}), adapt(text, documents=WARM)
    config = make_lora_config("lora_documents", documents=WARM).documents
    batches = plan_documents(*find_documents(text), config, WINDOW)
    assert [batch.full for batch in batches] == [False] + [True] * (len(batches) - 1)
    used = set()
    for batch in batches:
        for first, last in zip(batch.start, batch.stop, strict=True):
            moved = bool((cold.nats != warm.nats)[first:last].any())
            # before a document's first step B is 0, and A does not show
            assert moved == (batch.chain in used and last - first > 6)
        if batch.full:
            used.add(batch.chain)


class TestPhases:
    def test_the_prefix_is_scored_as_without_and_the_rest_is_not(self):
        text = make_text(400)
        plain, phased = (
            adapt(text, documents={**PHASES, "phases": n, "order": "stream"}) for n in (0, 1)
        )
        # 2 chains x 2 documents are a group: the bound of 10 is reached with 12
        start, _ = find_documents(text)
        assert (plain.nats[: start[12]] == phased.nats[: start[12]]).all()
        assert (plain.nats[start[12] :] != phased.nats[start[12] :]).mean() > 0.95
        assert phased.close()["score_first"]

    @pytest.mark.parametrize("repeat_bos", [False, True])
    @pytest.mark.parametrize("order", ["stream", "length"])
    def test_updates_are_whole_sequences_of_the_phases_documents(self, order, repeat_bos):
        text, changes = make_text(400), {"chunk_tokens": 40, "epochs": 1}  # 2 sequences of 16
        documents = {**PHASES, "order": order, "repeat_bos": repeat_bos}
        config = make_lora_config("lora_documents", None, documents, **changes)
        items = plan_documents(*find_documents(text), config.documents, WINDOW)
        expected = []
        for phase in items:
            if isinstance(phase, DocumentBatch):
                continue
            # after each document comes the next one's BOS, which is no target of the text
            stream = []
            for first, last in zip(phase.start, phase.stop, strict=True):
                stream += [*range(first, last), *[None] * repeat_bos]
            stream = stream[: len(stream) - repeat_bos]
            for begin in range(0, len(stream) - 40, 40):
                expected.append(sorted({*stream[begin : begin + 32]} - {None}))
        found = [u for u in adapt(text, documents=documents, **changes).updates if not u.own]
        assert found
        targets = [expand_ranges(update.start, update.stop).tolist() for update in found]
        assert [sorted(some) for some in targets] == expected

    def test_a_prefix_longer_than_the_text_trains_nothing(self):
        ledger = adapt(make_text(200), documents={**PHASES, "prefix_documents": 1000})
        assert all(update.own for update in ledger.updates)

    def test_training_on_a_document_not_scored_is_refused(self):
        text, config = make_text(200), make_lora_config("lora_documents")
        scorer = DocumentScorer(make_network(), text, config, Session(ALONE))
        with pytest.raises(LedgerError, match="learn from targets not scored yet"):
            scorer.train(Lesson.of_targets(np.arange(100)))


class TestCausality:
    @everywhere
    @pytest.mark.parametrize("documents", [{}, PHASES])
    def test_in_stream_order_no_past_score_moves_with_a_future_token(self, documents, adapter):
        text, documents = make_text(300), {"order": "stream", **documents}
        before = adapt(text, documents=documents, adapter=adapter).nats
        start, stop = find_documents(text)
        # in a window that lower layers read ahead, and in others
        ahead = int(start[(stop - start).argmax()]) + WINDOW + 2
        for position in (61, 130, 260, ahead):
            assert text.tokens[position] != 1
            changed = with_token(text, position)
            after = adapt(changed, documents=documents, adapter=adapter).nats
            assert (before[: position - 1] == after[: position - 1]).all()
            assert before[position - 1] != after[position - 1]

    @everywhere
    @pytest.mark.parametrize("position", [61, 130])
    def test_no_past_score_moves_with_the_place_where_a_document_ends(self, position, adapter):
        text = make_text(200)
        assert text.tokens[position] != 1
        before, after = (
            adapt(some, documents={"order": "stream"}, adapter=adapter).nats
            for some in (text, with_token(text, position, token=1))
        )
        # other documents share a batch now: the same scores but for rounding
        np.testing.assert_allclose(before[: position - 1], after[: position - 1], atol=2e-4)

    @pytest.mark.parametrize("documents", [{}, WARM])
    def test_by_length_nothing_scored_before_moves(self, documents):
        text = make_text(300)
        before = adapt(text, documents=documents)
        start, stop = find_documents(text)
        i = int(np.argsort(start - stop, kind="stable")[1])
        position = int(start[i] + stop[i]) // 2
        after = adapt(with_token(text, position), documents=documents)
        same = before.nats == after.nats
        assert same[start[i] : position - 1].all()
        assert not same[position - 1]
        others = np.r_[same[: start[i]], same[stop[i] :]]
        assert others.all() or documents is WARM
        earlier = before.entry < before.entry[position - 1]
        assert same[earlier].all()


class TestPlantedViolations:
    @pytest.fixture
    def parts(self):
        text, config = make_text(200), make_lora_config("lora_documents")
        scorer = DocumentScorer(make_network(), text, config, Session(ALONE))
        return scorer, scorer.items[0], scorer.ledger

    def test_a_second_pass_over_a_batch(self, parts):
        scorer, step, _ = parts
        scorer.run(step)
        with pytest.raises(LedgerError, match="scored a second time"):
            scorer.run(step)

    def test_a_document_left_out(self, parts):
        scorer, step, ledger = parts
        scorer.run(step)
        ledger.merge(ALONE)
        with pytest.raises(LedgerError, match="never scored"):
            ledger.close()


def test_the_stride_changes_no_score():
    text = make_text(100)
    assert (adapt(text, stride=STRIDE).nats == adapt(text, stride=WINDOW).nats).all()


class Recorded:
    """A CUDA graph's ways on a CPU: it computes on the tensors that it was recorded with."""

    def __init__(self):
        self.passes, self.replayed = {}, []

    @staticmethod
    def addresses(scorer):
        leaves = scorer.trainer.adapters.parameters()
        used = [*scorer.network.parameters(), *leaves, *(leaf.grad for leaf in leaves)]
        return [tensor.data_ptr() for tensor in used]

    def capture(self, key, work, lesson, *, warm_ups):
        self.passes[key] = work, lesson, self.addresses(work.__self__)

    def fits(self, key, lesson):
        return key in self.passes and lesson.learns is not None

    def __call__(self, key, given):
        work, lesson, addresses = self.passes[key]
        assert addresses == self.addresses(work.__self__)
        for own, tensor in zip(lesson, given, strict=True):
            assert own.shape == tensor.shape
            own.copy_(tensor)
        self.replayed.append(key)
        return work(lesson)


def test_passes_are_recorded_where_that_saves_time():
    assert lora_documents.worth_recording((64, 256, 48), 4)
    assert not lora_documents.worth_recording((64, 256, 48), 3)
    assert not lora_documents.worth_recording((64, 2048, 48), 1000)


@pytest.mark.parametrize("last_layers", [None, 2])
@pytest.mark.parametrize("documents", [WARM, {**PHASES, "warm_a": True}])
def test_what_a_pass_was_recorded_with_stays_in_its_place(documents, last_layers, monkeypatch):
    monkeypatch.setattr(lora_documents, "WIDTH_STEP", 8)
    monkeypatch.setattr(lora_documents, "FEWEST_ROWS", 2)
    text, documents = make_text(400), {**documents, "batch_documents": 8}
    adapter = {"last_layers": last_layers}
    plain = adapt(text, documents=documents, adapter=adapter, epochs=1)
    graphs = Recorded()
    monkeypatch.setattr(lora_documents, "CudaGraphs", lambda: graphs)
    config = make_lora_config("lora_documents", adapter, documents, epochs=1)
    scorer = DocumentScorer(make_network(), text, config, Session(ALONE))
    batches = [item for item in scorer.items if isinstance(item, DocumentBatch)]
    # nothing is learned from a batch's last chunk: that pass has no gradients, and is another
    shapes = {
        shape
        for batch in batches
        for shape in list(lora_documents.batch_shapes(batch, scorer.rows, WINDOW, 8))[:-1]
    }
    scorer.record_passes(sorted(shapes, reverse=True))
    for item in scorer.items:
        scorer.run(item)
    assert {*graphs.replayed} == shapes
    np.testing.assert_allclose(scorer.ledger.nats, plain.nats, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("last_layers", [None, 2])
@pytest.mark.parametrize("documents", [WARM, {**PHASES, "warm_a": True}])
def test_recorded_passes_score_as_those_that_are_launched(documents, last_layers, monkeypatch):
    monkeypatch.setattr(lora_documents, "WIDTH_STEP", 8)
    monkeypatch.setattr(lora_documents, "FEWEST_ROWS", 2)
    plain = Runtime(0, 1, torch.device("cuda"), attention="sdpa", kernels="reference")
    runtime = dataclasses.replace(plain, compile=True)  # so that passes are warmed up and recorded
    monkeypatch.setattr(lora_documents, "RECORD_SECONDS", 0.0)
    text, documents = make_text(400), {**documents, "batch_documents": 8}

    def scores():
        adapter = {"last_layers": last_layers}
        return adapt(text, runtime, make_network().on(plain), documents, adapter, epochs=1).nats

    recorded = scores()
    monkeypatch.setattr(DocumentScorer, "record_passes", lambda *_: None)
    np.testing.assert_allclose(recorded, scores(), atol=1e-3)

"""Documents in batches: each once, cut from the shortest, shared out the same for any processes."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published_case import facts
from scoring_case import DOCUMENTS

from paramgolf.runtime import Runtime
from paramgolf.scoring.document_plan import (
    DocumentBatch,
    Phase,
    own_batches,
    phase_bounds,
    place_phases,
    plan_documents,
    work,
)
from paramgolf.scoring.text import Text, find_documents


def plan(lengths, window=16, **changes):
    """The plan for documents of these lengths, one after another."""
    stop = np.cumsum(lengths)
    return plan_documents(stop - lengths, stop, replace(DOCUMENTS, **changes), window)


def batches_of(items):
    return [item for item in items if isinstance(item, DocumentBatch)]


def test_documents_end_with_the_next_ones_beginning():
    text = Text(np.array([1, 5, 6, 1, 1, 7], dtype=np.uint16), np.ones(5, dtype=np.uint16), 1)
    start, stop = find_documents(text)
    assert start.tolist() == [0, 3, 4]
    assert stop.tolist() == [3, 4, 5]


def test_a_beginning_without_a_target_is_no_document():
    text = Text(np.array([1, 5, 1], dtype=np.uint16), np.ones(2, dtype=np.uint16), 1)
    start, stop = find_documents(text)
    assert (start.tolist(), stop.tolist()) == ([0], [2])


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    order=st.sampled_from(["stream", "length"]),
    rows=st.integers(1, 5),
    chains=st.integers(1, 4),
)
def test_every_document_is_in_one_batch(lengths, order, rows, chains):
    sizes = np.array(lengths)
    batches = plan(sizes, order=order, batch_documents=rows, chains=chains)
    starts = [start for batch in batches for start in batch.start.tolist()]
    assert sorted(starts) == (np.cumsum(sizes) - sizes).tolist()
    for batch in batches:
        lengths_here = batch.stop - batch.start
        assert 1 <= len(batch.start) <= rows
        assert batch.full == (len(batch.start) == rows)
        assert 0 <= batch.chain < chains
        assert (np.diff(lengths_here) <= 0).all()
        assert batch.chunks == -(-int(lengths_here.max()) // 6)
    if order == "length":
        # one after another they are in falling order, and only the first may have fewer rows
        assert all(batch.full for batch in batches[1:])
        assert (np.diff([n for b in batches for n in (b.stop - b.start).tolist()]) <= 0).all()
    else:
        # documents of as many batches as there are chains come before the next ones
        groups = [starts[i : i + rows * chains] for i in range(0, len(starts), rows * chains)]
        assert all(max(a) < min(b) for a, b in itertools.pairwise(groups))


def test_work_counts_every_token_that_is_read():
    (batch,) = plan(np.array([9, 5]), window=8, batch_documents=2, chains=1, chunk_tokens=4)
    # the document of 9 reads 4, 8, 8; the one of 5 reads 4, 8
    assert work(batch, window=8) == 4 + 8 + 8 + 4 + 8


def test_chains_do_about_the_same_work():
    sizes = np.random.default_rng(0).integers(1, 400, 800)
    sizes[::50] *= 5
    spent = np.zeros(4)
    for batch in plan(sizes, window=64, chains=4):
        spent[batch.chain] += work(batch, 64)
    assert spent.max() < 1.1 * spent.min()


@pytest.mark.parametrize("changes", [{}, {"phases": 2, "prefix_documents": 150}])
def test_processes_share_all_batches_evenly(changes):
    sizes = np.random.default_rng(0).lognormal(4, 0.8, 1500).astype(int) + 1
    items = plan(sizes, window=64, chains=16, batch_documents=8, **changes)
    runtimes = [Runtime(rank, 4, torch.device("cpu")) for rank in range(4)]
    own = [own_batches(items, 64, runtime) for runtime in runtimes]
    assert set.union(*own) == set(batches_of(items))
    assert sum(map(len, own)) == len(batches_of(items))
    ends = [i for i, item in enumerate(items) if isinstance(item, Phase)]
    assert len(ends) == changes.get("phases", 0)
    for begin, end in itertools.pairwise([0, *ends, len(items)]):
        span = set(batches_of(items[begin:end]))
        spent = [sum(work(batch, 64) for batch in batches & span) for batches in own]
        assert max(spent) < sum(spent) / 4 / 0.9
        owners = {(batch.chain, rank) for rank in range(4) for batch in own[rank] & span}
        assert len(owners) == len({chain for chain, _ in owners})  # what a chain hands on stays


@pytest.mark.parametrize(
    ("prefix", "phases", "bounds"),
    [(2000, 3, [666, 1333, 2000]), (2500, 3, [833, 1666, 2500]), (50, 1, [50]), (9, 0, [])],
)
def test_bounds_of_the_phases_are_the_records(prefix, phases, bounds):
    assert phase_bounds(replace(DOCUMENTS, prefix_documents=prefix, phases=phases)) == bounds


@pytest.mark.parametrize("name", ["pr1855", "pr2135"])
class TestPublished:
    """Batches and phases of 700 documents, as the published code has them, by their lengths."""

    def items(self, name, chains):
        fact = facts(name, "phases")
        bounds, self.lengths = fact["phase_documents"], np.array(fact["document_tokens"])
        self.lengths[-1] -= 1  # of the last document nothing follows the last token
        changes = {"phases": len(bounds), "prefix_documents": bounds[-1], "chains": chains}
        return plan(self.lengths, batch_documents=fact["batch_documents"], **changes)

    def numbers(self, start):
        return np.searchsorted(np.cumsum(self.lengths), start, side="right").tolist()

    def test_batches_hold_the_same_documents(self, name):
        expected = facts(name, "phases")["batches"]
        batches = batches_of(self.items(name, chains=1))
        assert [len(batch.start) for batch in batches] == expected["sizes"]
        for batch, key in ((batches[0], "first"), (batches[1], "second"), (batches[-1], "last")):
            assert self.numbers(batch.start)[::-1] == expected[key]

    @pytest.mark.parametrize("chains", [1, 8])
    def test_phases_come_as_late_and_learn_from_the_same_documents(self, name, chains):
        done, found = 0, []
        for item in self.items(name, chains):
            if isinstance(item, Phase):
                found.append((done, self.numbers(item.start)))
            else:
                done += len(item.start)
        expected = facts(name, "phases")["lanes"][str(chains)]
        assert found == [(phase["documents_scored"], phase["trained"]) for phase in expected]

    def test_phases_of_the_contest_text_come_as_in_the_logs(self, name):
        published = facts(name, "phases")["published"]
        count, rows = published["documents"], published["batch_documents"]
        sizes = [count % rows] + [rows] * (count // rows)
        changes = {"phases": len(published["documents_trained"]), "prefix_documents": 2500}
        config = replace(DOCUMENTS, chains=published["processes"], **changes)
        phases = place_phases(sizes, list(range(len(sizes))), config)
        scored = [sum(sizes[: batch + 1]) for batch in phases]
        assert scored == published["documents_scored_before_each_phase"]
        assert list(phases.values()) == published["documents_trained"]


def test_in_stream_order_a_phase_learns_from_text_before_all_that_is_left():
    sizes = np.random.default_rng(1).integers(1, 60, 50)
    items = plan(sizes, order="stream", phases=3, prefix_documents=30, batch_documents=3)
    phases = [index for index, item in enumerate(items) if isinstance(item, Phase)]
    assert len(phases) == 3
    for index in phases:
        learned, left = items[index], batches_of(items[index:])
        assert max(learned.stop) <= min(start for batch in left for start in batch.start)

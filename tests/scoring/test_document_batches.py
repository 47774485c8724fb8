"""Documents in batches: each once, the longest first, shared out the same for any processes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_case import DOCUMENTS, make_text

from paramgolf.scoring.config import DocumentsConfig, ShortChunk
from paramgolf.scoring.document_batches import (
    phase_bounds,
    plan_groups,
    scoring_order,
    work,
)
from paramgolf.scoring.text import Text, find_documents


def documents_config(**changes):
    return DocumentsConfig(**{**DOCUMENTS, **changes})


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
    lanes=st.integers(1, 4),
)
def test_every_document_is_in_one_batch(lengths, order, rows, lanes):
    sizes = np.array(lengths)
    stop = np.cumsum(sizes)
    start = stop - sizes
    ranking = scoring_order(sizes, order)
    config = documents_config(order=order, batch_documents=rows, lanes=lanes)
    groups = plan_groups(start[ranking], stop[ranking], config, window=16)
    batches = [batch for group in groups for batch in group.batches]
    assert sorted(s for b in batches for s in b.start.tolist()) == start.tolist()
    for group in groups:
        used = [batch.lane for batch in group.batches]
        assert len(set(used)) == len(used)
        assert max(used) < lanes
    for batch in batches:
        assert 1 <= len(batch.start) <= rows
        assert (np.diff(batch.stop - batch.start) <= 0).all()
        assert batch.chunks == -(-int((batch.stop - batch.start).max()) // 6)
    if order == "stream":
        # a group's documents all come before the next group's
        bounds = [[s for b in g.batches for s in b.start.tolist()] for g in groups]
        assert all(max(a) < min(b) for a, b in itertools.pairwise(bounds))
    assert [g.documents_done for g in groups][-1] == len(lengths)


def test_work_counts_every_token_that_is_read():
    config = documents_config(batch_documents=2, lanes=1, chunk_tokens=4)
    ((batch,),) = (g.batches for g in plan_groups(np.array([0, 9]), np.array([9, 14]), config, 8))
    # the document of 9 reads 4, 8, 8; the one of 5 reads 4, 8
    assert work(batch, window=8) == 4 + 8 + 8 + 4 + 8


def test_lanes_do_about_the_same_work():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 400, 800)
    sizes[::50] *= 5
    stop = np.cumsum(sizes)
    groups = plan_groups(stop - sizes, stop, documents_config(lanes=4), window=64)
    spent = np.zeros(4)
    for group in groups:
        for batch in group.batches:
            spent[batch.lane] += work(batch, 64)
    assert spent.max() < 1.1 * spent.min()


def test_short_documents_have_short_chunks():
    rules = (
        ShortChunk(document_tokens=5, chunk_tokens=2),
        ShortChunk(document_tokens=9, chunk_tokens=3),
    )
    config = documents_config(short_chunks=rules, batch_documents=1, lanes=3)
    start = np.array([0, 10, 19])
    (group,) = plan_groups(start, np.array([10, 19, 24]), config, 16)
    assert [(batch.chunk, batch.chunks) for batch in group.batches] == [(6, 2), (3, 3), (2, 3)]


@pytest.mark.parametrize(
    ("prefix", "phases", "bounds"),
    [(2000, 3, [666, 1333, 2000]), (2500, 3, [833, 1666, 2500]), (50, 1, [50]), (9, 0, [])],
)
def test_bounds_of_the_phases_are_the_records(prefix, phases, bounds):
    assert phase_bounds(documents_config(prefix_documents=prefix, phases=phases)) == bounds


def test_the_text_of_the_tests_has_documents():
    start, stop = find_documents(make_text(300))
    assert len(start) > 8
    assert (start[1:] == stop[:-1]).all()

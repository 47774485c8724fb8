"""Windows: each target is scored exactly once, with the context that the rule promises."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.runtime import Runtime, share
from paramgolf.scoring.windows import (
    add_scores,
    document_windows,
    sliding_windows,
    split_batches,
    split_chunks,
)

lengths_and_strides = st.integers(1, 40).flatmap(
    lambda length: st.tuples(st.just(length), st.integers(1, length))
)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 400), lengths_and_strides, st.integers(1, 9), st.integers(1, 8))
def test_each_target_is_scored_once_whatever_the_shapes_and_processes(count, shape, rows, world):
    length, stride = shape
    windows = sliding_windows(count, length, stride)
    batches = list(split_batches(windows, rows))
    nats, times = np.zeros((2, count))
    for rank in range(world):
        for i in share(len(batches), Runtime(rank, world, torch.device("cpu"))):
            batch = batches[i]
            assert 1 <= len(batch) <= rows
            assert batch.offset <= (batch.first - batch.start).max() <= batch.offset + length // 4
            add_scores(nats, times, batch, np.ones((len(batch), length - batch.offset)), 0)
    assert (times == 1).all()
    assert (nats == 1).all()


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 300), lengths_and_strides)
def test_context_is_as_long_as_promised(count, shape):
    length, stride = shape
    windows = sliding_windows(count, length, stride)
    for start, first, stop in zip(windows.start, windows.first, windows.stop, strict=True):
        assert start <= first < stop <= min(start + length, count)
        assert start == 0 or first - start == length - stride
    # a window more than needed would score nothing, and one that began earlier would score twice
    assert (np.diff(windows.start) == stride).all()


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 600), st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
def test_chunks_hold_exactly_their_own_targets(count, stride, strides, lengths):
    length = stride * strides
    chunk = length * lengths
    windows = sliding_windows(count, length, stride)
    chunks = list(split_chunks(windows, chunk))
    assert sum(map(len, chunks)) == len(windows)
    expected = [range(at, min(at + chunk, count)) for at in range(0, count, chunk)]
    assert [part.targets for part in chunks] == expected


def test_count_of_windows_of_the_published_validation_set():
    windows = sliding_windows(40_540_160, 2048, 64)
    assert len(windows) == 633_409  # spec 4.2, from a record's log
    assert windows.targets == range(40_540_160)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    length=st.integers(1, 12),
    data=st.data(),
)
def test_windows_of_documents_score_each_target_once_from_its_document(lengths, length, data):
    stride = data.draw(st.integers(1, length))
    stop = np.cumsum(lengths)
    start = stop - lengths
    windows = document_windows(start, stop, length, stride)
    times = np.zeros(stop[-1], dtype=int)
    for begin, first, end in zip(windows.start, windows.first, windows.stop, strict=True):
        times[first:end] += 1
        for target in range(first, end):
            own = start[np.searchsorted(stop, target, side="right")]
            # all of its document, or at least what the stride promises
            assert begin <= max(own, target - (length - stride))
            assert target < begin + length
    assert (times == 1).all()
    assert (windows.first[1:] == windows.stop[:-1]).all()


def test_short_documents_share_a_window():
    start, stop = np.array([0, 3, 7, 20]), np.array([3, 7, 20, 24])
    windows = document_windows(start, stop, 8, 4)
    assert windows.start.tolist() == [0, 7, 11, 15, 20]
    assert windows.first.tolist() == [0, 7, 15, 19, 20]
    assert windows.stop.tolist() == [7, 15, 19, 20, 24]

"""The loader is a pure function of seed and index, and an epoch reads every window once."""

from __future__ import annotations

import numpy as np
import pytest
from shard_files import write_shard

from paramgolf.data.loader import TrainingWindows
from paramgolf.data.shards import ShardStream
from paramgolf.errors import ParamGolfError


@pytest.fixture
def stream(tmp_path):
    values = np.arange(1000, dtype=np.uint16)
    for i, part in enumerate(np.split(values, [130, 131, 700])):
        write_shard(tmp_path / f"{i}.bin", part)
    return ShardStream([tmp_path / f"{i}.bin" for i in range(4)])


def test_windows_are_a_function_of_seed_and_index(stream):
    one, two = (TrainingWindows(stream, 16, seed=3, arrangement="shuffled") for _ in range(2))
    whole = one.read(0, 2 * one.count)
    backwards = [two.read(i, i + 1)[0] for i in reversed(range(2 * two.count))]
    assert np.array_equal(whole, np.stack(backwards[::-1]))
    other = TrainingWindows(stream, 16, seed=4, arrangement="shuffled").read(0, one.count)
    assert not np.array_equal(whole[: one.count], other)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("arrangement", ["shuffled", "coprime"])
def test_an_epoch_reads_each_window_once_and_epochs_differ(stream, arrangement, seed):
    windows = TrainingWindows(stream, 8, seed=seed, arrangement=arrangement)
    assert windows.count == 124  # of many divisors, which a stride must not have
    first, second = (windows.read(e * windows.count, (e + 1) * windows.count) for e in (0, 1))
    for epoch in (first, second):
        assert np.array_equal(epoch, epoch[:, :1] + np.arange(9))
        assert len(set(epoch[:, 0])) == windows.count
        assert np.all(np.diff(np.sort(epoch[:, 0])) == 8)
    assert not np.array_equal(first, second)


def test_windows_of_a_coprime_epoch_are_a_stride_apart(stream):
    strides = {}
    for arrangement in ("coprime", "shuffled"):
        windows = TrainingWindows(stream, 8, seed=1, arrangement=arrangement)
        places = windows.read(0, windows.count)[:, 0] // 8
        strides[arrangement] = {*(np.diff(places) % windows.count).tolist()}
    assert len(strides["coprime"]) == 1
    assert len(strides["shuffled"]) > 10


def test_sequential_windows_follow_the_stream(stream):
    windows = TrainingWindows(stream, 16, seed=3, arrangement="sequential")
    assert windows.read(0, 3)[:, 0].tolist() == [0, 16, 32]


def test_a_short_stream_is_refused(stream):
    with pytest.raises(ParamGolfError, match="too little training text"):
        TrainingWindows(stream, 600, seed=0, arrangement="shuffled")

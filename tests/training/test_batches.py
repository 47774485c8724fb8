"""Batches by phase of the curriculum, the same for any number of processes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from process_case import ALONE

from paramgolf.data.special_tokens import BOS
from paramgolf.data.token_set import open_tokens
from paramgolf.model.attention import find_segments
from paramgolf.runtime import Runtime
from paramgolf.training.batches import Batches
from paramgolf.training.config import BatchSizes


@pytest.fixture
def stream(tokens_folder):
    return open_tokens(tokens_folder).train()


def config_of(sample, **changes):
    sizes = {"batch_tokens": 256, "micro_batch_tokens": 128, "sequence_length": 32}
    return dataclasses.replace(sample.train, **{**sizes, **changes})


def read(stream, config, sizes, consumed, world=1):
    parts = []
    for rank in range(world):
        batches = Batches(stream, config, Runtime(rank, world, torch.device("cpu")), 128)
        parts += [batch.tokens for batch in batches.read(sizes, consumed)]
    return torch.cat(parts)


@pytest.mark.parametrize("loader", ["shuffled", "coprime", "sequential", "documents"])
def test_processes_share_one_global_batch(stream, sample, loader):
    config = config_of(sample, loader=loader)
    sizes = config.batch_sizes[0]
    one = read(stream, config, sizes, 512)
    assert torch.equal(one, read(stream, config, sizes, 512, world=2))
    assert one[:, :-1].numel() == 256
    assert not torch.equal(one, read(stream, config, sizes, 768))


def test_packed_rows_follow_the_stream_and_know_their_documents(stream, sample):
    config = config_of(sample, loader="documents")
    batches = Batches(stream, config, ALONE, 128)
    sizes = config.batch_sizes[0]
    rows = read(stream, config, sizes, 256)
    assert rows.shape == (2, 129)
    assert np.array_equal(rows[0].numpy(), stream.read(256, 385))
    assert config.document_tokens(sizes) == 32
    batch = next(batches.read(sizes, 256))
    expected = find_segments(batch.tokens[:, :-1], BOS, 32).bounds
    bounds = batch.segments(32).bounds
    assert torch.equal(bounds.unique(), expected.unique())
    assert len(bounds) == len(next(batches.read(sizes, 512)).bounds)


def test_the_curriculum_changes_sizes_at_its_fractions(stream, sample):
    later = BatchSizes(at=0.5, batch_tokens=512, sequence_length=64)
    config = config_of(sample, curriculum=(later,))
    assert config.sizes_at(0.49) == config.batch_sizes[0]
    assert config.sizes_at(0.5) == later
    assert read(stream, config, later, 0).shape == (8, 65)

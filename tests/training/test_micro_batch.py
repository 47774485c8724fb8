"""The micro-batch that fits: equal parts, the largest within the limit, one answer for all."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from process_case import ALONE

from paramgolf.errors import ParamGolfError
from paramgolf.model.network import Network
from paramgolf.profiling.step_benchmark import StepBenchmark
from paramgolf.runtime import Runtime
from paramgolf.training.config import BatchSizes
from paramgolf.training.micro_batch import CPU_TOKENS, choose_micro_batch, fitting, sequence_counts

MEMORY = 4 * 2**30


def sized(sample, first, *later, loader="shuffled"):
    """Return train's parameters with batches of so many tokens, of sequences of 2,048."""
    phases = tuple(
        BatchSizes(at=i / 10, batch_tokens=tokens, sequence_length=2048)
        for i, tokens in enumerate(later, 1)
    )
    return dataclasses.replace(
        sample.train, batch_tokens=first, sequence_length=2048, curriculum=phases, loader=loader
    )


@pytest.mark.parametrize(
    ("sequences", "limit", "expected"), [(384, 10**9, 384), (384, 100 * 2048, 96), (7, 6 * 2048, 1)]
)
def test_the_largest_equal_part_within_the_limit(sample, sequences, limit, expected):
    config = sized(sample, sequences * 2048)
    assert fitting(sequence_counts(config, 2048, 1), 2048, limit) == expected * 2048


@pytest.mark.parametrize(
    ("loader", "world", "batches", "expected"),
    [
        ("shuffled", 1, (4, 6), [1, 2, 4]),
        ("shuffled", 2, (5, 6), [1, 2]),
        # rows of packed documents fill every batch, and each process has one
        ("documents", 1, (4, 6), [1, 2]),
        ("documents", 1, (12, 18), [1, 2, 3, 6]),
        ("documents", 2, (12, 18), [1, 2, 3]),
        ("documents", 2, (11,), [1]),
    ],
)
def test_micro_batches_divide_every_batch(sample, loader, world, batches, expected):
    config = sized(sample, *(2048 * count for count in batches), loader=loader)
    assert sequence_counts(config, 2048, world) == expected


@pytest.mark.parametrize(
    ("loader", "batches"),
    [("shuffled", (2048,)), ("documents", (4096, 6144)), ("documents", (4000,))],
)
def test_batches_without_such_a_part_are_named(sample, loader, batches):
    with pytest.raises(ParamGolfError, match=f"(?s)no micro-batch.*found: {batches[0]}"):
        sequence_counts(sized(sample, *batches, loader=loader), 2048, 2)


def test_too_little_memory_is_one_message():
    with pytest.raises(ParamGolfError, match="smallest micro-batch does not fit"):
        fitting([1, 2], 2048, 2047)


def test_auto_becomes_a_number_on_a_cpu(sample, capsys):
    config = dataclasses.replace(
        sample.train, micro_batch_tokens="auto", batch_tokens=2**16, sequence_length=256
    )
    chosen = choose_micro_batch(Network(sample.model, 64, seed=1), config, ALONE)
    assert chosen == CPU_TOKENS
    assert "16,384" in capsys.readouterr().err


@pytest.fixture
def small_gpu(monkeypatch):
    """A GPU of MEMORY bytes: other tests may run on it meanwhile."""
    _, total = torch.cuda.mem_get_info()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    free = MEMORY - torch.cuda.memory_reserved()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, total))
    torch.cuda.set_per_process_memory_fraction(MEMORY / total)
    yield torch.device("cuda")
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
def test_what_is_chosen_fills_a_gpu_and_can_be_captured(sample, small_gpu):
    """Of each of two orders of layers a graph is captured, of passes as large as they can be."""
    train = dataclasses.replace(
        sample.train, micro_batch_tokens="auto", batch_tokens=2**24, sequence_length=256
    )
    params = dataclasses.replace(sample, train=train)
    benchmark = StepBenchmark(params, Runtime(0, 1, small_gpu))
    benchmark.passes(-1, benchmark.micro_batch_tokens)
    assert 2**24 % benchmark.micro_batch_tokens == 0
    assert torch.cuda.max_memory_allocated() > MEMORY / 4

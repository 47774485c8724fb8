"""The micro-batch that fits: equal parts, the largest within the limit, one answer for all."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from paramgolf.errors import ParamGolfError
from paramgolf.model.network import Network
from paramgolf.runtime import Runtime
from paramgolf.training.micro_batch import CPU_TOKENS, choose_micro_batch, fitting


@pytest.mark.parametrize(
    ("sequences", "limit", "expected"), [(384, 10**9, 384), (384, 100 * 2048, 96), (7, 6 * 2048, 1)]
)
def test_the_largest_equal_part_within_the_limit(sequences, limit, expected):
    assert fitting(sequences, 2048, limit) == expected * 2048


def test_too_little_memory_is_one_message():
    with pytest.raises(ParamGolfError, match="single sequence does not fit"):
        fitting(384, 2048, 2047)


def test_auto_becomes_a_number_on_a_cpu(sample, capsys):
    config = dataclasses.replace(
        sample.train, micro_batch_tokens="auto", batch_tokens=2**16, sequence_length=256
    )
    chosen = choose_micro_batch(
        Network(sample.model, 64, seed=1), config, Runtime(0, 1, torch.device("cpu"))
    )
    assert chosen == CPU_TOKENS
    assert "16,384" in capsys.readouterr().err


@pytest.mark.gpu
def test_what_is_chosen_on_a_gpu_fits(sample):
    config = dataclasses.replace(
        sample.train, micro_batch_tokens="auto", batch_tokens=2**16, sequence_length=256
    )
    runtime = Runtime(0, 1, torch.device("cuda"))
    network = Network(sample.model, 64, seed=1).to(runtime.device)
    assert 2**16 % choose_micro_batch(network, config, runtime) == 0

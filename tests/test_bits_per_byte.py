"""The score itself: published figures, exact sums, messages."""

import math

import numpy as np
import pytest
import torch

from paramgolf.bits_per_byte import Tally, bits_per_byte
from paramgolf.errors import ParamGolfError
from paramgolf.runtime import Runtime


def test_a_uniform_model_over_bytes_spends_eight_bits():
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8.0, rel=1e-15)


def test_published_loss_and_score_agree():
    # record #1493: 2.7923 nats a token, 40,540,160 tokens, about 151.08 MB of text, 1.0810 BPB
    assert bits_per_byte(2.7923 * 40_540_160, 151_080_891) == pytest.approx(1.0810, abs=5e-5)


def test_no_bytes_is_an_error_that_says_so():
    with pytest.raises(ParamGolfError, match=r"at least one byte(.|\n)*0 bytes"):
        bits_per_byte(3.0, 0)


def test_tally_sums_in_float64_and_does_not_wrap_uint16():
    nats = np.full(1 << 20, 0.1, dtype=np.float32)
    tally = Tally.of(nats, np.full(1 << 20, 60_000, dtype=np.uint16))
    assert tally.byte_count == 60_000 << 20
    assert tally.nats == pytest.approx(float(np.float32(0.1)) * (1 << 20), rel=1e-14)
    assert tally.loss == pytest.approx(float(np.float32(0.1)), rel=1e-14)


class Echo(Runtime):
    """Stands for two processes that hold the same."""

    def sum(self, tensor):
        return tensor * 2


def test_tallies_of_processes_add_up():
    tally = Tally(1.25, 2**40 + 1, 7).over(Echo(0, 2, torch.device("cpu")))
    assert tally == Tally(2.5, 2 * (2**40 + 1), 14)

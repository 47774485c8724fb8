"""Bits per byte: the one function that turns nats and bytes into the score, and the sums it needs.

BPB = (sum of nats / ln 2) / (sum of bytes), both over the same targets, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from paramgolf.errors import ParamGolfError
from paramgolf.runtime import Runtime


def bits_per_byte(nats: float, byte_count: int) -> float:
    """Return the bits that a model spends on each byte of text.

    `nats` is the sum of -ln p over targets, `byte_count` the bytes of text they stand for.
    """
    if byte_count < 1:
        raise ParamGolfError(
            "bits per byte need at least one byte of text",
            found=f"{byte_count} bytes",
            fix="score more tokens, and look at the byte counts that retokenize wrote",
        )
    return float(nats) / math.log(2) / byte_count


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over scored targets: nats (float64), bytes and tokens (exact)."""

    nats: float
    byte_count: int
    tokens: int

    @classmethod
    def of(cls, nats: np.ndarray, byte_counts: np.ndarray) -> Tally:
        """Sum per-target `nats` [N] and `byte_counts` [N]."""
        assert nats.shape == byte_counts.shape
        total = nats.sum(dtype=np.float64)
        return cls(float(total), int(byte_counts.sum(dtype=np.int64)), len(nats))

    def over(self, runtime: Runtime) -> Tally:
        """Add the tallies of all processes."""
        sums = [self.nats, self.byte_count, self.tokens]
        # whole numbers stay exact in float64 up to 2^53, far above any count here
        total = runtime.sum(torch.tensor(sums, dtype=torch.float64, device=runtime.device)).tolist()
        return Tally(total[0], int(total[1]), int(total[2]))

    @property
    def bits_per_byte(self) -> float:
        """The score, in bits."""
        return bits_per_byte(self.nats, self.byte_count)

    @property
    def loss(self) -> float:
        """The mean of nats over targets."""
        return self.nats / self.tokens

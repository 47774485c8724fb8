"""Training batches as a pure function of (seed, step): windows of the token stream."""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np

from paramgolf.data.shards import ShardStream
from paramgolf.errors import ParamGolfError

Arrangement = Literal["shuffled", "coprime", "sequential"]


class TrainingWindows:
    """Windows of `length` + 1 tokens; window w of an epoch begins length tokens after window w - 1.

    The arrangement of an epoch is `sequential`: as in the stream; `shuffled`: a seeded permutation;
    or `coprime`: a seeded stride that has no divisor in common with the number of windows. The last
    two begin each epoch at another random offset. Windows cross document bounds. Batches depend
    only on the seed, so training can resume at any step, on any number of processes.
    """

    def __init__(
        self, stream: ShardStream, length: int, *, seed: int, arrangement: Arrangement
    ) -> None:
        self.count = (len(stream) - length) // length  # windows of one epoch, at any phase
        if self.count < 1:
            raise ParamGolfError(
                "too little training text for one window",
                expected=f"at least {2 * length} tokens",
                found=f"{len(stream)} tokens",
                fix="add text, or lower train.sequence_length",
            )
        self._stream = stream
        self._length = length
        self._seed = seed
        self._arrangement = arrangement
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def read(self, first: int, last: int) -> np.ndarray:
        """Return windows first..last of the endless sequence of epochs, int64 [n, length + 1]."""
        return np.stack([self._window(index) for index in range(first, last)]).astype(np.int64)

    def _window(self, index: int) -> np.ndarray:
        epoch, place = divmod(index, self.count)
        phase, order = self._epoch(epoch)
        start = phase + int(order[place]) * self._length
        return self._stream.read(start, start + self._length + 1)

    def _draw_epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        """Return an epoch's phase, in tokens, and the order of its windows [count]."""
        if self._arrangement == "sequential":
            return 0, np.arange(self.count)
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        phase = int(generator.integers(self._length))
        if self._arrangement == "shuffled":
            return phase, generator.permutation(self.count)
        first, stride = (int(n) for n in generator.integers(self.count, size=2))
        while math.gcd(stride, self.count) != 1:
            stride += 1
        return phase, (first + stride * np.arange(self.count)) % self.count

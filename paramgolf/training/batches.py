"""Which tokens a step trains on: a global batch, shared out and cut into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from paramgolf.data.loader import TrainingWindows
from paramgolf.data.shards import ShardStream
from paramgolf.data.special_tokens import BOS
from paramgolf.model.attention import BOUNDS_MULTIPLE, Segments, find_bounds
from paramgolf.runtime import Runtime, send, share
from paramgolf.training.config import BatchSizes, TrainConfig

SAMPLED_ROWS = 32
SPARE_BOUNDS = 1.1


class Batch(NamedTuple):
    """A micro-batch on its device: tokens [n, T + 1], and the bounds of packed documents."""

    tokens: Tensor
    bounds: Tensor | None = None

    def segments(self, longest: int | None) -> Segments | None:
        """Return the documents as attention takes them, none longer than `longest`."""
        return None if self.bounds is None or longest is None else Segments(self.bounds, longest)


class Batches:
    """The batches of a run: a global batch is cut into windows, shared out, cut into rows."""

    def __init__(
        self, stream: ShardStream, config: TrainConfig, runtime: Runtime, micro_batch_tokens: int
    ) -> None:
        self._config, self._runtime = config, runtime
        self._micro_batch_tokens = micro_batch_tokens
        arrangement = "sequential" if config.loader == "documents" else config.loader
        lengths = {self.window_tokens(sizes) for sizes in config.batch_sizes}
        self._windows = {
            length: TrainingWindows(stream, length, seed=config.seed, arrangement=arrangement)
            for length in lengths
        }
        self._bounds = {sizes: self._sampled_bounds(sizes) for sizes in config.batch_sizes}

    def _sampled_bounds(self, sizes: BatchSizes) -> int:
        """Return a number of bounds that almost no row of packed documents exceeds.

        Rows are padded to it, since compiled code and graphs want one shape. It should be small:
        the backward pass of attention takes time for each bound, even of an empty segment.
        """
        length, longest = self.window_tokens(sizes), self._config.document_tokens(sizes)
        if longest is None:
            return 0
        windows = self._windows[length]
        step = -(-windows.count // SAMPLED_ROWS)
        rows = [windows.read(i, i + 1)[:, :-1] for i in range(0, windows.count, step)]
        most = max(
            len(find_bounds(torch.from_numpy(row), BOS, longest, multiple=BOUNDS_MULTIPLE))
            for row in rows
        )
        return round(SPARE_BOUNDS * most)

    def window_tokens(self, sizes: BatchSizes) -> int:
        """Return the tokens of a row: a sequence, or a whole micro-batch of packed documents."""
        packed = self._config.loader == "documents"
        return self._micro_batch_tokens if packed else sizes.sequence_length

    def windows(self, sizes: BatchSizes) -> int:
        """Return the sequences of a full micro-batch."""
        return max(1, self._micro_batch_tokens // sizes.sequence_length)

    def rows(self, sizes: BatchSizes) -> int:
        """Return the rows of a full micro-batch."""
        return max(1, self._micro_batch_tokens // self.window_tokens(sizes))

    def read(self, sizes: BatchSizes, consumed: int) -> Iterator[Batch]:
        """Yield this process's micro-batches after `consumed` tokens of training."""
        length = self.window_tokens(sizes)
        assert sizes.batch_tokens % length == 0  # or tokens of it would be left out
        offset = -(-consumed // length)
        mine = share(sizes.batch_tokens // length, self._runtime)
        rows = self.rows(sizes)
        for first in range(mine.start, mine.stop, rows):
            last = min(first + rows, mine.stop)
            windows = self._windows[length].read(offset + first, offset + last)
            yield self._batch(torch.from_numpy(windows), sizes)

    def random(self, sizes: BatchSizes, vocab_size: int) -> Batch:
        """Return a micro-batch of random tokens, to compile with."""
        shape = (self.rows(sizes), self.window_tokens(sizes) + 1)
        generator = torch.Generator().manual_seed(0)
        return self._batch(torch.randint(vocab_size, shape, generator=generator), sizes)

    def _batch(self, tokens: Tensor, sizes: BatchSizes) -> Batch:
        longest = self._config.document_tokens(sizes)
        return batch_of(tokens, longest, self._runtime.device, self._bounds[sizes])


def batch_of(
    tokens: Tensor, longest: int | None, device: torch.device, bounds: int = BOUNDS_MULTIPLE
) -> Batch:
    """Return rows of tokens on `device`, from memory that needs no waiting.

    With `longest` they are packed documents; their bounds are padded to a multiple of `bounds`.
    """
    if longest is None:
        return Batch(send(tokens, device))
    found = find_bounds(tokens[:, :-1], BOS, longest, multiple=bounds)
    return Batch(send(tokens, device), send(found, device))

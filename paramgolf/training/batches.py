"""Which tokens a step trains on: sizes by phase of the curriculum, windows by arrangement."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from paramgolf.data.loader import Windows
from paramgolf.data.shards import Stream
from paramgolf.optim.schedule import Point
from paramgolf.runtime import Ranks, share
from paramgolf.training.config import BatchPhase, TrainConfig


class Batches:
    """The batches of a run: a global batch is cut into windows, shared out, cut into rows."""

    def __init__(self, stream: Stream, config: TrainConfig, ranks: Ranks) -> None:
        self._config, self._ranks = config, ranks
        arrangement = "sequential" if config.loader == "documents" else config.loader
        lengths = {self.window_tokens(sizes) for sizes in config.sizes}
        self._windows = {
            length: Windows(stream, length, seed=config.seed, arrangement=arrangement)
            for length in lengths
        }

    def sizes(self, at: Point) -> BatchPhase:
        """Return the sizes that hold at a point of training."""
        return [sizes for sizes in self._config.sizes if sizes.at <= at.fraction][-1]

    def window_tokens(self, sizes: BatchPhase) -> int:
        """Return the tokens of a row: a sequence, or a whole micro-batch of packed documents."""
        packed = self._config.loader == "documents"
        return self._config.micro_batch_tokens if packed else sizes.sequence_length

    def document_tokens(self, sizes: BatchPhase) -> int | None:
        """Return how many tokens of its own document a token may see, or None: the whole row."""
        return sizes.sequence_length if self._config.loader == "documents" else None

    def rows(self, sizes: BatchPhase) -> int:
        """Return the rows of a full micro-batch."""
        return max(1, self._config.micro_batch_tokens // self.window_tokens(sizes))

    def read(self, sizes: BatchPhase, consumed: int) -> Iterator[Tensor]:
        """Yield this process's micro-batches [n, T + 1] after `consumed` tokens of training."""
        length = self.window_tokens(sizes)
        offset = -(-consumed // length)
        mine = share(sizes.batch_tokens // length, self._ranks)
        rows = self.rows(sizes)
        for first in range(mine.start, mine.stop, rows):
            last = min(first + rows, mine.stop)
            windows = self._windows[length].read(offset + first, offset + last)
            yield torch.from_numpy(windows).to(self._ranks.device)

    def random(self, sizes: BatchPhase, vocab_size: int) -> Tensor:
        """Return a micro-batch of random tokens [n, T + 1], to compile with."""
        shape = (self.rows(sizes), self.window_tokens(sizes) + 1)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(vocab_size, shape, generator=generator).to(self._ranks.device)

"""Score a batch of sliding windows, then let one shared adapter learn from it (pg#1499)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from paramgolf.model.network import Network
from paramgolf.runtime import send, share
from paramgolf.scoring.config import TttConfig
from paramgolf.scoring.lora_adapter import LoraTrainer
from paramgolf.scoring.scorer import Host, PassShape, Scorer, State, start_copy
from paramgolf.scoring.text import Text
from paramgolf.scoring.windows import ScoringWindows, split_batches


class StreamScorer(Scorer):
    """Scores the text in its order, a batch of windows at a time, each followed by an AdamW step.

    All windows share the adapter, processes the rows of a batch. The adapter begins anew every
    `reset_chunks` chunks. Nothing is learned from the last batch.
    """

    def __init__(self, network: Network, text: Text, config: TttConfig, session: Host) -> None:
        super().__init__(
            network.requires_grad_(False),
            text,
            session,
            length=config.window,
            rows=-(-config.batch_windows // session.runtime.world),
            mixing=config.mixture,
        )
        self._config = config
        self._reset()

    def _reset(self) -> None:
        self.trainer = LoraTrainer(self.network, self._config.adapter, rows=1)

    def run(self, item: ScoringWindows) -> None:
        """Score a chunk of windows, and learn from each batch of it."""
        resets, chunk = self._config.adapter.reset_chunks, self._config.chunk_tokens
        if resets and item.targets.start // chunk % resets == 0:
            self._reset()
        with self.session.timed("score"), self.network.frozen():
            for batch in split_batches(item, self._config.batch_windows):
                self.score_and_learn(batch)

    def state(self) -> State:
        """Add the adapter and its moments."""
        return {**super().state(), "trainer": self.trainer.state()}

    def load_state(self, state: State) -> None:
        """Go on from what `state` returned, and `own_state` with it."""
        super().load_state(state)
        self.trainer.load_state(state["trainer"])

    def pass_shapes(self, items: Sequence[ScoringWindows]) -> Iterator[PassShape]:
        """Yield the shapes of the passes that `items` need."""
        trainer = LoraTrainer(self.network, self._config.adapter, rows=1)
        for shape in super().pass_shapes(items):
            yield shape._replace(options=trainer.options(), learns=True)

    def score_and_learn(self, batch: ScoringWindows) -> None:
        """Score a batch of windows, then learn from it."""
        rows = share(len(batch), self.runtime)
        mine = batch[rows.start : rows.stop]
        targets = batch.targets
        loss, scores = self._score(batch, mine)
        (loss / len(targets)).backward()
        self.record(targets, [(mine, scores())])
        if targets.stop < len(self.text):
            self._learn(targets)

    def _score(
        self, batch: ScoringWindows, mine: ScoringWindows
    ) -> tuple[torch.Tensor, Callable[[], np.ndarray]]:
        """Return the sum of this process's nats, and what waits for its scores [B, k], float64.

        Rows are padded to the same number in every batch and process: a process without windows
        has a loss of 0, and joins the sums all the same.
        """
        starts = np.concatenate([mine.start, np.repeat(batch.start[:1], self.rows - len(mine))])
        part = slice(batch.offset, None)
        nats, scores = self.score(starts, batch.length, part, self.trainer.options())
        nats, scores = nats[: len(mine)], scores[: len(mine)]
        targets = mine.start[:, None] + np.arange(batch.offset, batch.length)
        inside = (mine.first[:, None] <= targets) & (targets < mine.stop[:, None])
        scored = send(torch.from_numpy(inside), nats.device)
        return (nats * scored).sum(), start_copy(scores)

    def _learn(self, targets: range) -> None:
        self.ledger.update(np.array([targets.start]), np.array([targets.stop]))
        for leaf in self.trainer.adapters.parameters():
            assert leaf.grad is not None
            self.runtime.sum(leaf.grad)
        self.trainer.step()

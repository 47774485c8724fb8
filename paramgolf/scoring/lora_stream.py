"""Score a batch of sliding windows, then let one shared adapter learn from it (pg#1499)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from paramgolf.model.network import Network
from paramgolf.runtime import send, share, start_copy
from paramgolf.scoring.config import TttConfig
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.lora_adapter import LoraTrainer
from paramgolf.scoring.scorer import PassShape, Scorer, State
from paramgolf.scoring.session import Session
from paramgolf.scoring.sliding import cut
from paramgolf.scoring.text import Text
from paramgolf.scoring.windows import ScoringWindows, sliding_windows


def score_stream(network: Network, text: Text, config: TttConfig, session: Session) -> Ledger:
    """Score the text in its order, learning after each batch of windows."""
    scorer = StreamScorer(network, text, config, session)
    windows = sliding_windows(len(text), config.window, config.stride)
    session.run(scorer, scorer.plan(windows), "score, adapt")
    return scorer.ledger


class StreamScorer(Scorer):
    """Scores the text in its order, a batch of windows at a time, each followed by an AdamW step.

    One pass does both: it gives the scores, and the gradient of the step that comes after them.
    All windows share the adapter, processes the rows of a batch. The adapter begins anew after
    every `reset_batches` batches: what it has learned is local, and too many steps in a row would
    let it drift. Nothing is learned from the last batch.
    """

    def __init__(self, network: Network, text: Text, config: TttConfig, session: Session) -> None:
        super().__init__(
            network.requires_grad_(False),
            text,
            session,
            length=config.window,
            rows=-(-config.batch_windows // session.runtime.world),
            mixing=config.mixture,
        )
        self._config, self._stream = config, config.stream
        self.trainer = LoraTrainer(network, config.adapter, rows=1)

    def plan(self, windows: ScoringWindows) -> list[ScoringWindows]:
        """Return the windows from one reset to the next; without resets, in parts to be saved."""
        rows, batches = self._config.batch_windows, self._stream.reset_batches
        return windows.parts(batches * rows) if batches else cut(windows, rows)

    def reset(self) -> None:
        """Let the adapter begin anew."""
        self.trainer.renew()

    def run(self, item: ScoringWindows) -> None:
        """Score the windows, and learn from each batch of them."""
        if self._stream.reset_batches:
            self.reset()
        with self.session.timed("score"), self.network.frozen():
            for batch in item.parts(self._config.batch_windows):
                # a fresh adapter adds nothing, so there is nothing for the temperature to undo
                self.temperature = self._stream.temperature if self.trainer.steps else 1.0
                self.score_and_learn(batch)

    def state(self) -> State:
        """Add the adapter and its moments."""
        return {**super().state(), "trainer": self.trainer.state()}

    def load_state(self, state: State) -> None:
        """Continue from what `state` and `own_state` returned."""
        super().load_state(state)
        self.trainer.load_state(state["trainer"])

    def pass_shapes(self, items: Sequence[ScoringWindows]) -> Iterator[PassShape]:
        """Yield the shapes of the passes that `items` need."""
        rows, window = self._config.batch_windows, self._config.window
        starts = {self._part(batch).start for item in items for batch in item.parts(rows)}
        for start in sorted(starts):
            options = self.trainer.options()
            yield PassShape(self.rows, window, slice(start, None), options, learns=True)
        self.trainer.renew()  # without the gradients of what was no text

    def score_and_learn(self, batch: ScoringWindows) -> None:
        """Score a batch of windows, then learn from it."""
        rows = share(len(batch), self.runtime)
        mine = batch[rows.start : rows.stop]
        # rows are padded to the same number in every batch and process: a process without windows
        # has a loss of 0, and joins the sums all the same
        starts = np.concatenate([mine.start, np.repeat(batch.start[:1], self.rows - len(mine))])
        part = self._part(batch)
        nats, scores = self.score(starts, batch.length, part, self.trainer.options())
        waiting = start_copy(scores[: len(mine)])  # goes on beside the backward pass
        counted = self._counted(batch, part.start)
        weights = send(torch.from_numpy(counted[rows.start : rows.stop]), nats.device)
        ((nats[: len(mine)] * weights).sum() / int(counted.sum())).backward()
        self.record(batch.targets, [(mine, waiting())])
        if batch.targets.stop < len(self.text):
            self._step(batch)

    def _part(self, batch: ScoringWindows) -> slice:
        """Return the positions that a pass needs the head at."""
        return slice(0 if self._stream.learn == "window" else batch.offset, None)

    def _counted(self, batch: ScoringWindows, offset: int) -> np.ndarray:
        """Tell which positions from `offset` on count in the loss, bool [B, k].

        Those past the end of the text are padding, and never count.
        """
        targets = batch.start[:, None] + np.arange(offset, batch.length)
        if self._stream.learn == "window":
            return targets < len(self.text)
        return (batch.first[:, None] <= targets) & (targets < batch.stop[:, None])

    def _step(self, batch: ScoringWindows) -> None:
        """Enter what was learned from, all of it scored by now, and take the step."""
        begin = batch.start[0] if self._stream.learn == "window" else batch.targets.start
        self.ledger.update(np.array([begin]), np.array([batch.targets.stop]))
        for leaf in self.trainer.adapters.parameters():
            assert leaf.grad is not None
            self.runtime.sum(leaf.grad)
        self.trainer.step()

"""Score a batch of sliding windows, then let one shared adapter learn from it (#1499)."""

from __future__ import annotations

import numpy as np
import torch

from paramgolf.model.network import Network
from paramgolf.progress import track
from paramgolf.runtime import Ranks, share
from paramgolf.scoring.config import AdaptConfig
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.low_rank import Learner
from paramgolf.scoring.mixture import build_mixture, score_tokens
from paramgolf.scoring.sliding import add_scores, split_batches, take_rows
from paramgolf.scoring.text import Text
from paramgolf.scoring.timing import Timing
from paramgolf.scoring.windows import Windows, sliding_windows, split_chunks


def score_stream(
    network: Network, text: Text, config: AdaptConfig, ranks: Ranks, timing: Timing
) -> Ledger:
    """Score the text in its order, a batch of windows at a time, each followed by one AdamW step.

    The adapter begins anew every `reset_chunks` chunks. Nothing is learned from the last batch.
    """
    ledger = Ledger(len(text))
    windows = sliding_windows(len(text), config.window, config.stride)
    chunks = list(split_chunks(windows, config.chunk_tokens))
    with timing.part("mixture"):
        scorer = StreamScorer(network, text, config, ranks, ledger)
    resets = config.adapter.reset_chunks
    for index, chunk in enumerate(
        track(chunks, "score, adapt", total=len(chunks), show=ranks.is_main)
    ):
        if resets and index % resets == 0:
            scorer.reset()
        with timing.part("score"):
            for batch in split_batches(chunk, config.batch_windows):
                scorer.run(batch)
    return ledger


class StreamScorer:
    """The network and the adapter that all windows share; processes share the rows of a batch."""

    def __init__(
        self, network: Network, text: Text, config: AdaptConfig, ranks: Ranks, ledger: Ledger
    ) -> None:
        self._network, self._config = network.requires_grad_(False), config
        self._ranks, self._ledger = ranks, ledger
        self._tokens = text.rows_source(config.window, ranks.device)
        self._count = len(text)
        padding, device = config.window, ranks.device
        self._mixture = build_mixture(text, config.mixture, ledger, padding=padding, device=device)
        self.reset()

    def reset(self) -> None:
        """Begin with a fresh adapter."""
        self._learner = Learner(self._network, self._config.adapter, rows=1)

    def run(self, batch: Windows) -> None:
        """Score a batch of windows that begin to score at the same offset, then learn from it."""
        rows = share(len(batch), self._ranks)
        mine = batch[rows.start : rows.stop]
        targets = batch.targets
        loss, scores = self._score(batch, mine)
        (loss / len(targets)).backward()
        nats, times = np.zeros((2, len(targets)))
        add_scores(nats, times, mine, scores, targets.start)
        both = torch.from_numpy(np.stack([nats, times])).to(self._ranks.device)
        nats, times = self._ranks.sum(both).cpu().numpy()
        self._ledger.score(targets.start, nats, times)
        if targets.stop < self._count:
            self._learn(targets)

    def _score(self, batch: Windows, mine: Windows) -> tuple[torch.Tensor, np.ndarray]:
        """Return the sum of this process's nats, and the scores of its rows [B, k], float64.

        Rows are padded to the same number in every batch and process: a process without windows
        has a loss of 0, and joins the sums all the same.
        """
        rows = -(-self._config.batch_windows // self._ranks.world)
        starts = np.concatenate([mine.start, np.repeat(batch.start[:1], rows - len(mine))])
        offset = int(batch.first[0] - batch.start[0])
        part = slice(offset, None)
        inputs, goals = take_rows(self._tokens, starts, batch.length)
        nats, scores = score_tokens(
            self._network,
            inputs,
            goals,
            self._learner.options(),
            part=part,
            mixture=self._mixture,
            first=torch.from_numpy(starts).to(self._ranks.device),
        )
        nats, scores = nats[: len(mine)], scores[: len(mine)]
        targets = mine.first[:, None] + np.arange(batch.length - offset)
        scored = torch.from_numpy(targets < mine.stop[:, None]).to(nats.device)
        return (nats * scored).sum(), scores.double().cpu().numpy()

    def _learn(self, targets: range) -> None:
        self._ledger.update(np.array([targets.start]), np.array([targets.stop]))
        for leaf in self._learner.adapters.parameters():
            assert leaf.grad is not None
            self._ranks.sum(leaf.grad)
        self._learner.step()

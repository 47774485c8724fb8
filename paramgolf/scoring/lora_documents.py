"""Score documents side by side, each with an adapter that learns from its scored chunks (#1530).

A chunk is scored by a pass over it and the document's tokens before it, as many as the window
holds; the same pass gives the gradient of the step that follows. Where the document ends does not
change any score before it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from paramgolf.model.network import Network
from paramgolf.progress import track
from paramgolf.runtime import Ranks, share
from paramgolf.scoring.config import AdaptConfig
from paramgolf.scoring.document_batches import (
    Batch,
    find_documents,
    phase_bounds,
    plan_groups,
    scoring_order,
)
from paramgolf.scoring.ledger import Ledger, spread
from paramgolf.scoring.low_rank import Learner
from paramgolf.scoring.sgd import SgdAdapter
from paramgolf.scoring.sliding import take_rows
from paramgolf.scoring.text import Text
from paramgolf.scoring.timing import Timing

SMALLEST_WIDTH = 256  # tokens; widths double from here to the window, so that few graphs compile
FEWER_ROWS = 4  # rows are dropped when at most one in so many is in use


def score_documents(
    network: Network, text: Text, config: AdaptConfig, ranks: Ranks, timing: Timing
) -> Ledger:
    """Score every document; between groups, train the whole model in phases (#1610, #1626).

    The phase at bound n learns from the first n documents in scoring order, all of them scored. It
    comes after the first group that reaches the bound; the last group is followed by none.
    """
    ledger = Ledger(len(text))
    start, stop = find_documents(text)
    order = scoring_order(stop - start, config.documents.order)
    start, stop = start[order], stop[order]
    groups = plan_groups(start, stop, config.documents, config.window)
    scorer = DocumentScorer(network, text, config, ranks, ledger)
    bounds = phase_bounds(config.documents)
    for group in track(groups, "documents", total=len(groups), show=ranks.is_main):
        with timing.part("score"):
            for batch in group.batches:
                scorer.run(batch)
        reached = [bound for bound in bounds if bound <= group.documents_done]
        if reached and group is not groups[-1]:
            bounds = bounds[len(reached) :]
            with timing.part("adapt"):
                ledger.merge(ranks)
                scorer.train(spread(start[: reached[-1]], stop[: reached[-1]]))
    ledger.merge(ranks)
    return ledger


class DocumentScorer:
    """The network, its adapters lane by lane, and the ledger of what this process scores."""

    def __init__(
        self, network: Network, text: Text, config: AdaptConfig, ranks: Ranks, ledger: Ledger
    ) -> None:
        self._network, self._config = network.requires_grad_(False), config
        self._ranks, self._ledger = ranks, ledger
        self._tokens = text.rows_source(config.window, ranks.device)
        self._lanes = share(config.documents.lanes, ranks)
        self._warm: dict[int, dict[str, torch.Tensor]] = {}

    def run(self, batch: Batch) -> None:
        """Score a batch, chunk by chunk, if its lane is one of this process's."""
        if batch.lane not in self._lanes:
            return
        rows = self._config.documents.batch_documents
        learner = Learner(self._network, self._config.adapter, rows)
        if batch.lane in self._warm:
            learner.adapters.warm(self._warm[batch.lane])
        # rows without a document stay idle, so that all batches have the same shape
        start, stop = (np.pad(x, (0, rows - len(x))) for x in (batch.start, batch.stop))
        dropped: list[dict[str, torch.Tensor]] = []
        for index in range(batch.chunks):
            begin = index * batch.chunk
            active = int((stop - start > begin).sum())
            fewer = fewer_rows(active, learner.adapters.rows)
            if begin + batch.chunk >= self._config.window and fewer < learner.adapters.rows:
                dropped.append({n: a.detach()[:, fewer:] for n, a in learner.adapters.a.items()})
                learner.keep(fewer)
            self._chunk(learner, start[: learner.adapters.rows] + begin, stop, batch.chunk)
        if self._config.documents.warm_a:
            parts = [learner.adapters.a, *reversed(dropped)]
            self._warm[batch.lane] = {
                name: torch.cat([part[name].detach() for part in parts], dim=1)
                for name in learner.adapters.a
            }
    def _chunk(
        self, learner: Learner, start: np.ndarray, stop: np.ndarray, index: int, size: int
    ) -> None:
        pass

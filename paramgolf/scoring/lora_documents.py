"""Score documents side by side, each with an adapter that learns from its scored chunks (#1530).

A chunk is scored by a pass over it and the document's tokens before it, as many as the window
holds; the same pass gives the gradient of the step that follows. Where the document ends does not
change any score before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from paramgolf.model.network import Network
from paramgolf.model.shared_graphs import share_graphs
from paramgolf.runtime import send, share
from paramgolf.scoring.config import AdaptConfig
from paramgolf.scoring.document_batches import (
    Batch,
    phase_bounds,
    plan_groups,
    scoring_order,
)
from paramgolf.scoring.ledger import Ledger, spread
from paramgolf.scoring.low_rank import Learner
from paramgolf.scoring.scorer import Rehearsal, Scorer, start_copy
from paramgolf.scoring.session import Session
from paramgolf.scoring.sgd import SgdAdapter, sgd_rehearsals
from paramgolf.scoring.text import Text, find_documents

SMALLEST_WIDTH = 256  # tokens; widths double from here to the window, so that shapes are few
FEWER_ROWS = 4  # rows are dropped when at most one in so many is in use; so many are the fewest
Matrices = dict[str, torch.Tensor]


class Step(NamedTuple):
    """A batch to score, and the number of documents that the whole model then learns from."""

    batch: Batch
    phase: int


def score_documents(network: Network, text: Text, config: AdaptConfig, session: Session) -> Ledger:
    """Score every document, training the whole model in phases on the way."""
    scorer = DocumentScorer(network, text, config, session)
    # with several processes, a lane is another's to wait for
    every = config.documents.lanes if session.ranks.world > 1 else 1
    session.run(scorer, scorer.plan(), "documents", every=every)
    scorer.ledger.merge(session.ranks)
    return scorer.ledger


class DocumentScorer(Scorer):
    """Scores documents, in batches that share nothing but a lane's first matrices.

    Processes share the lanes; each enters in the ledger what it scores itself.
    """

    def __init__(self, network: Network, text: Text, config: AdaptConfig, session: Session) -> None:
        start, stop = find_documents(text)
        order = scoring_order(stop - start, config.documents.order)
        self.start, self.stop = start[order], stop[order]
        super().__init__(
            network.requires_grad_(False),
            text,
            session,
            length=config.window,
            rows=config.documents.batch_documents,
            mixing=config.mixture,
            order=spread(self.start, self.stop),
        )
        self.config = config
        self._lanes = share(config.documents.lanes, self.ranks)
        self.warm: dict[int, Matrices] = {}
        if self.ranks.compile:
            share_graphs(network)

    def plan(self) -> list[Step]:
        """Return what to score, and where phases come (#1610, #1626).

        The phase at bound n learns from the first n documents in scoring order, all of them scored.
        It comes after the first group that reaches the bound; the last group is followed by none.
        """
        documents = self.config.documents
        groups = plan_groups(self.start, self.stop, documents, self.config.window)
        bounds = phase_bounds(documents)
        steps, before = [], 0
        for group in groups:
            steps += [Step(batch, 0) for batch in group.batches]
            reached = [n for n in bounds if before < n <= group.documents_done]
            if reached and group is not groups[-1]:
                steps[-1] = steps[-1]._replace(phase=reached[-1])
            before = group.documents_done
        return steps

    def run(self, item: Step) -> None:
        """Score a batch, if its lane is one of this process's; then train, if a phase is due."""
        if item.batch.lane in self._lanes:
            with self.session.timing.part("score"), self.network.frozen():
                self._score_batch(item.batch)
        if item.phase:
            with self.session.timing.part("adapt"):
                self.ledger.merge(self.ranks)
                self.train(spread(self.start[: item.phase], self.stop[: item.phase]))

    def rehearsals(self, items: Sequence[Step]) -> Iterator[Rehearsal]:
        """Yield the shapes of the passes that `items` need."""
        window, rows = self.config.window, self.rows
        learner = Learner(self.network, self.config.adapter, rows)
        mine = [step.batch for step in items if step.batch.lane in self._lanes]
        shapes = {shape for batch in mine for shape in pass_shapes(batch, rows, window)}
        for rows, read, size in sorted(shapes, reverse=True):
            if rows < learner.adapters.rows:
                learner.keep(rows)
            yield Rehearsal(rows, read, slice(read - size, read), learner.options(), learns=True)
        if any(step.phase for step in items):
            self.network.requires_grad_(True)
            yield from sgd_rehearsals(self.network, self.config, self.ranks, window)
            self.network.requires_grad_(False).zero_grad()

    def train(self, targets: np.ndarray) -> None:
        """Train the whole model on `targets`, in that order; adapters begin anew afterwards."""
        config = self.config
        self.warm.clear()
        self.network.requires_grad_(True)
        adapter = SgdAdapter(self, config, document_tokens=config.window)
        chunks = np.split(targets, range(config.chunk_tokens, len(targets), config.chunk_tokens))
        for index, chunk in enumerate(chunks[:-1]):  # the last may be short; the records skip it
            adapter.adapt(chunk, progress=index / (len(chunks) - 1))
        self.network.requires_grad_(False).zero_grad()

    def _score_batch(self, batch: Batch) -> None:
        rows = self.rows
        # rows without a document stay idle, so that all batches have the same shape
        start, stop = (np.pad(x, (0, rows - len(x))) for x in (batch.start, batch.stop))
        lengths = stop - start
        learner = Learner(self.network, self.config.adapter, rows)
        learner.adapters.warm(self.warm.get(batch.lane, {}))
        for begin, used in rows_in_use(batch, rows, self.config.window):
            if used < learner.adapters.rows:
                learner.keep(used)
            self._score_chunk(learner, start[:used] + begin, stop[:used], begin, batch.chunk)
            if self.config.documents.warm_a:
                going, before = ((lengths > n).sum() for n in (begin + batch.chunk, begin))
                self._hand_on(batch.lane, learner, slice(going, before))

    def _score_chunk(
        self, learner: Learner, first: np.ndarray, stop: np.ndarray, begin: int, size: int
    ) -> None:
        """Score the targets first[i]..first[i] + size of each row, and learn from them.

        `begin` is the tokens of a document before the chunk. A row whose document ends in the
        chunk learns no more, and one whose document has ended is idle.
        """
        width = min(begin + size, self.config.window)
        # where the window begins must not depend on where the document ends
        starts = np.minimum(first + size - width, stop)
        read = round_width(width, self.config.window)
        part = slice(width - size, width)
        nats, mixed = self.score(starts, read, part, learner.options())
        scores = start_copy(mixed)
        goes_on = stop > first + size
        if goes_on.any():
            losses = nats.mean(dim=1) * send(torch.from_numpy(goes_on), nats.device)
            losses.sum().backward()
        positions = first[:, None] + np.arange(size)
        scored = positions < stop[:, None]
        self.ledger.score_at(positions[scored], scores()[scored])
        if goes_on.any():
            self.ledger.update(first[goes_on], first[goes_on] + size, own=True)
            learner.step()

    def _hand_on(self, lane: int, learner: Learner, rows: slice) -> None:
        """Keep the first matrices of `rows`, whose documents have ended, for the lane's next batch.

        Idle rows go on to decay; what is handed on must not depend on how long.
        """
        learned = {name: a.detach() for name, a in learner.adapters.a.items()}
        if lane not in self.warm:
            self.warm[lane] = {name: a.clone() for name, a in learned.items()}
        for name, a in learned.items():
            self.warm[lane][name][:, rows] = a[:, rows]


def rows_in_use(batch: Batch, rows: int, window: int) -> Iterator[tuple[int, int]]:
    """Yield where each chunk begins in its document, and the rows that its pass has, of `rows`.

    Rows that the longest documents do without are dropped, once passes fill the window. A few idle
    ones stay: they cost next to nothing, and a pass of one row would need graphs of its own.
    """
    lengths = batch.stop - batch.start
    for begin in range(0, batch.chunks * batch.chunk, batch.chunk):
        if begin + batch.chunk >= window:
            active = int((lengths > begin).sum())
            while rows > FEWER_ROWS and rows % FEWER_ROWS == 0 and active <= rows // FEWER_ROWS:
                rows //= FEWER_ROWS
        yield begin, rows


def pass_shapes(batch: Batch, rows: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Yield the rows, the tokens read, and those scored, of each pass over a batch."""
    for begin, used in rows_in_use(batch, rows, window):
        yield used, round_width(min(begin + batch.chunk, window), window), batch.chunk


def round_width(width: int, window: int) -> int:
    """Return the width of the pass for `width` tokens: causal, so what is added changes nothing."""
    rounded = SMALLEST_WIDTH
    while rounded < width:
        rounded *= 2
    return min(rounded, window)

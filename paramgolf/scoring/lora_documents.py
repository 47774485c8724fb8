"""Score documents side by side, each with an adapter that learns from its scored chunks (#1530).

A chunk is scored by a pass over it and the document's tokens before it, as many as the window
holds; the same pass gives the gradient of the step that follows. Where the document ends does not
change any score before it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from paramgolf.model.backend import share_graphs
from paramgolf.model.cuda_graph import CudaGraphs
from paramgolf.model.network import Network
from paramgolf.progress import say
from paramgolf.runtime import send, share
from paramgolf.scoring.config import TttConfig
from paramgolf.scoring.document_batches import (
    DocumentBatch,
    phase_bounds,
    plan_groups,
    scoring_order,
)
from paramgolf.scoring.ledger import Ledger, expand_ranges
from paramgolf.scoring.lora_adapter import LoraTrainer
from paramgolf.scoring.scorer import Host, PassShape, Scorer, ScoringBatch, State, start_copy
from paramgolf.scoring.session import Session
from paramgolf.scoring.sgd import SgdTrainer, sgd_shapes
from paramgolf.scoring.text import Text, find_documents

WIDTH_STEP = 256  # tokens: widths are multiples of it, so that shapes are few
ROW_STEPS = 8  # rows are dropped an eighth at a time
FEWEST_ROWS = 4
Matrices = dict[str, torch.Tensor]


class Step(NamedTuple):
    """A batch to score, and the number of documents that the whole model then learns from."""

    batch: DocumentBatch
    phase: int


class Lesson(NamedTuple):
    """A pass as tensors alone, so that it can be recorded: see scorer.ScoringBatch.

    `places` int64 [k] are those of the part that is scored; `learns` float32 [B] is 1 for the rows
    that learn from it, 0 for the others.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    first: torch.Tensor
    places: torch.Tensor
    learns: torch.Tensor


def score_documents(network: Network, text: Text, config: TttConfig, session: Session) -> Ledger:
    """Score every document, training the whole model in phases on the way."""
    scorer = DocumentScorer(network, text, config, session)
    # with several processes, a lane is another's to wait for
    every = config.documents.lanes if session.runtime.world > 1 else 1
    session.run(scorer, scorer.plan(), "documents", every=every)
    scorer.ledger.merge(session.runtime)
    return scorer.ledger


class DocumentScorer(Scorer):
    """Scores documents, in batches that share nothing but a lane's first matrices.

    Processes share the lanes; each enters in the ledger what it scores itself. Passes are short
    where documents are: on a GPU they are CUDA graphs, or launching them would take longer.
    """

    def __init__(self, network: Network, text: Text, config: TttConfig, session: Host) -> None:
        start, stop = find_documents(text)
        order = scoring_order(stop - start, config.documents.order)
        self.start, self.stop = start[order], stop[order]
        if session.runtime.compile:
            network = network.with_backend(share_graphs(network.backend))
        super().__init__(
            network.requires_grad_(False),
            text,
            session,
            length=config.window,
            rows=config.documents.batch_documents,
            mixing=config.mixture,
            order=expand_ranges(self.start, self.stop),
        )
        self.config = config
        self.trainer = LoraTrainer(network, config.adapter, self.rows)
        self._graphs = CudaGraphs()
        self._lanes = share(config.documents.lanes, self.runtime)
        self.warm: dict[int, Matrices] = {}

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
            with self.session.timed("score"), self.network.frozen():
                self._score_batch(item.batch)
        if item.phase:
            with self.session.timed("adapt"):
                self.ledger.merge(self.runtime)
                self.train(expand_ranges(self.start[: item.phase], self.stop[: item.phase]))

    def state(self) -> State:
        """Merge the processes' ledgers; add the weights, if phases change them."""
        self.ledger.merge(self.runtime)
        weights = self.network.state_dict() if self.config.documents.phases else {}
        return {**super().state(), "weights": weights}

    def own_state(self) -> State:
        """Return the first matrices of this process's lanes."""
        return {"warm": self.warm} if self.warm else {}

    def load_state(self, state: State) -> None:
        """Go on from what `state` returned, and `own_state` with it."""
        super().load_state(state)
        if self.config.documents.phases:
            self.network.load_state_dict(state["weights"])
        for lane, matrices in state.get("warm", {}).items():
            self.warm[lane] = {name: a.to(self.runtime.device) for name, a in matrices.items()}

    def pass_shapes(self, items: Sequence[Step]) -> Iterator[PassShape]:
        """Yield the shapes of the passes that `items` need, and record those passes on a GPU."""
        window, trainer = self.config.window, self.trainer
        mine = [step.batch for step in items if step.batch.lane in self._lanes]
        shapes = {shape for batch in mine for shape in batch_shapes(batch, self.rows, window)}
        ordered = sorted(shapes, reverse=True)
        if self.runtime.is_main:
            say(f"documents: compiling for {len(ordered)} shapes of passes")
        for rows, read, size in ordered:
            trainer.keep(rows)
            yield PassShape(rows, read, slice(read - size, read), trainer.options(), learns=True)
        if self.runtime.device.type == "cuda":
            self._record(ordered)
        if any(step.phase for step in items):
            self.network.requires_grad_(True)
            yield from sgd_shapes(self.network, self.config, self.runtime, window)
            self.network.requires_grad_(False).zero_grad()

    def _record(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Record a pass of each of the rehearsed shapes (rows, tokens read and scored)."""
        device = self.runtime.device
        for shape in shapes:
            rows, read, size = shape
            self.trainer.keep(rows)
            inputs, targets = torch.zeros((2, rows, read), dtype=torch.int64, device=device)
            first, places = (torch.zeros_like(inputs[0, :1].expand(n)) for n in (rows, size))
            lesson = Lesson(inputs, targets, first, places, first.float())
            self._graphs.capture(shape, self._teach, lesson, warm_ups=0)

    def train(self, targets: np.ndarray) -> None:
        """Train the whole model on `targets`, in that order; adapters begin anew afterwards."""
        config = self.config
        self.warm.clear()
        self.network.requires_grad_(True)
        sgd = SgdTrainer(self, config, document_tokens=config.window)
        chunks = np.split(targets, range(config.chunk_tokens, len(targets), config.chunk_tokens))
        for index, chunk in enumerate(chunks[:-1]):  # the last may be short; the records skip it
            sgd.train(chunk, progress=index / (len(chunks) - 1))
        self.network.requires_grad_(False).zero_grad()

    def _score_batch(self, batch: DocumentBatch) -> None:
        rows, trainer = self.rows, self.trainer
        # rows without a document stay idle: fewer would be another shape
        start, stop = (np.pad(x, (0, rows - len(x))) for x in (batch.start, batch.stop))
        lengths = stop - start
        trainer.renew(self.warm.get(batch.lane))
        if self.config.documents.warm_a and batch.lane not in self.warm:
            fresh = trainer.adapters.a.items()
            self.warm[batch.lane] = {name: a.detach().clone() for name, a in fresh}
        for begin, used in rows_in_use(batch, rows):
            if used < trainer.adapters.rows:
                trainer.keep(used)
            self._score_chunk(start[:used] + begin, stop[:used], begin, batch.chunk)
            if self.config.documents.warm_a:
                going, before = ((lengths > n).sum() for n in (begin + batch.chunk, begin))
                self._keep_warm(batch.lane, slice(going, before))

    def _score_chunk(self, first: np.ndarray, stop: np.ndarray, begin: int, size: int) -> None:
        """Score the targets first[i]..first[i] + size of each row, and learn from them.

        `begin` is the tokens of a document before the chunk. A row whose document ends in the
        chunk learns no more, and one whose document has ended is idle.
        """
        width = min(begin + size, self.config.window)
        # where the window begins must not depend on where the document ends
        starts = np.minimum(first + size - width, stop)
        read = round_width(width, self.config.window)
        goes_on = stop > first + size
        part, run = slice(width - size, width), functools.partial(self._learn_pass, goes_on)
        _, scores = self.score(starts, read, part, self.trainer.options(), run)
        positions = first[:, None] + np.arange(size)
        scored = positions < stop[:, None]
        self.ledger.score_at(positions[scored], start_copy(scores)()[scored])
        if goes_on.any():
            self.ledger.update(first[goes_on], first[goes_on] + size, own=True)
            self.trainer.step()

    def _learn_pass(
        self, goes_on: np.ndarray, batch: ScoringBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a pass's nats and scores; the rows that go on add their gradient."""
        assert isinstance(batch.part, slice)
        places = torch.arange(batch.part.start, batch.part.stop, device=batch.first.device)
        learns = send(torch.from_numpy(goes_on.astype(np.float32)), batch.first.device)
        lesson = Lesson(batch.inputs, batch.targets, batch.first, places, learns)
        key = (*batch.inputs.shape, len(places))
        if self._graphs.fits(key, lesson):
            passed: tuple[torch.Tensor, torch.Tensor] = self._graphs(key, lesson)
            return passed
        return self._teach(lesson)

    def _teach(self, lesson: Lesson) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a pass's nats and scores [B, k], and add the gradient of the rows that learn."""
        inputs, targets, first, places, learns = lesson
        nats, scores = self.nats(
            ScoringBatch(inputs, targets, first, self.trainer.options(), places)
        )
        (nats.mean(dim=1) * learns).sum().backward()
        return nats.detach(), scores

    def _keep_warm(self, lane: int, rows: slice) -> None:
        """Keep the first matrices of `rows`, whose documents have ended, for the lane's next batch.

        Idle rows go on to decay; what is handed on must not depend on how long.
        """
        for name, a in self.trainer.adapters.a.items():
            self.warm[lane][name][rows] = a.detach()[rows]


def rows_in_use(batch: DocumentBatch, rows: int) -> Iterator[tuple[int, int]]:
    """Yield where each chunk begins in its document, and the rows that its pass has, of `rows`.

    Rows that the longest documents do without are dropped. A few idle ones stay: they cost next to
    nothing, and a pass of one row would need graphs of its own.
    """
    lengths = batch.stop - batch.start
    every = max(FEWEST_ROWS, rows // ROW_STEPS)
    for begin in range(0, batch.chunks * batch.chunk, batch.chunk):
        active = int((lengths > begin).sum())
        step = FEWEST_ROWS if active <= FEWEST_ROWS else every
        rows = min(rows, -(-active // step) * step)
        yield begin, rows


def batch_shapes(batch: DocumentBatch, rows: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Yield the rows, the tokens read, and those scored, of each pass over a batch."""
    for begin, used in rows_in_use(batch, rows):
        yield used, round_width(min(begin + batch.chunk, window), window), batch.chunk


def round_width(width: int, window: int) -> int:
    """Return the width of the pass for `width` tokens: causal, so what is added changes nothing."""
    return min(-(-width // WIDTH_STEP) * WIDTH_STEP, window)

"""Score documents side by side, each with an adapter that learns from its scored chunks (pg#1530).

A chunk is scored by a pass over it and the document's tokens before it, as many as the window
holds; the same pass gives the gradient of the step that follows. So each chunk costs one forward
and one backward pass, and is scored before anything is learned from it. Layers below all adapters
run once for each token (`lower_layers`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from paramgolf.model.backend import share_graphs, uncompiled
from paramgolf.model.cuda_graph import CudaGraphs
from paramgolf.model.network import Network, Pass
from paramgolf.progress import say
from paramgolf.runtime import send
from paramgolf.scoring.config import TttConfig
from paramgolf.scoring.document_plan import (
    DocumentBatch,
    Phase,
    own_batches,
    plan_documents,
)
from paramgolf.scoring.ledger import Ledger, expand_ranges
from paramgolf.scoring.lora_adapter import LoraTrainer
from paramgolf.scoring.lower_layers import LowerLayers
from paramgolf.scoring.scorer import (
    Host,
    PassShape,
    Scorer,
    ScoringBatch,
    State,
    lag,
    start_copy,
)
from paramgolf.scoring.session import Session
from paramgolf.scoring.sgd import Lesson, SgdTrainer
from paramgolf.scoring.text import Text, find_documents

WIDTH_STEP = 256  # tokens: widths are multiples of it, so that shapes are few
ROW_STEPS = 8  # rows are dropped an eighth at a time
FEWEST_ROWS = 4
# batches of each chain from one meeting of processes to the next: by the plan's costs four of them
# work 70 % of the time on documents of the contest's lengths if they meet after each, 96 % after 8
MEETING = 8
# of a pass on an H100: launching it, recording it (with the pass before), and what its tokens need
LAUNCH_SECONDS, RECORD_SECONDS, TOKENS_A_SECOND = 0.07, 0.17, 770_000
Matrices = dict[str, torch.Tensor]


class DocumentPass(NamedTuple):
    """A pass as tensors alone, so that it can be recorded: see scorer.ScoringBatch.

    `places` int64 [B] are those in its document that a row begins with, `positions` int64 [k] those
    of a row that are scored; `learns` float32 [B] is 1 for the rows that learn from the pass, 0 for
    the others; None: none does.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    first: torch.Tensor
    places: torch.Tensor
    positions: torch.Tensor
    learns: torch.Tensor | None


def score_documents(network: Network, text: Text, config: TttConfig, session: Session) -> Ledger:
    """Score every document, training the whole model in phases on the way."""
    scorer = DocumentScorer(network, text, config, session)
    # processes meet to save their state, and all wait for the one with the longest batches
    every = MEETING * config.documents.chains if session.runtime.world > 1 else 1
    session.run(scorer, scorer.items, "documents", every=every)
    scorer.ledger.merge(session.runtime)
    return scorer.ledger


class DocumentScorer(Scorer):
    """Scores documents, in batches that share nothing but their chain's warm A.

    Processes share the chains; each enters in the ledger what it scores itself. Passes are short
    where documents are: on a GPU these are CUDA graphs, or launching them would take longer.

    `items` are the batches and phases in their order. `warm` holds, by chain, the A that its next
    full batch begins with (pg#1767).
    """

    def __init__(self, network: Network, text: Text, config: TttConfig, session: Host) -> None:
        self.items = plan_documents(*find_documents(text), config.documents, config.window)
        batches = [item for item in self.items if isinstance(item, DocumentBatch)]
        start = np.concatenate([batch.start for batch in batches])
        stop = np.concatenate([batch.stop for batch in batches])
        # for passes that are few beside those of chunks: phases, and lower layers
        self._plain = network.with_backend(uncompiled(network.backend))
        if session.runtime.compile:
            network = network.with_backend(share_graphs(network.backend))
        super().__init__(
            network.requires_grad_(False),
            text,
            session,
            length=config.window,
            rows=config.documents.batch_documents,
            mixing=config.mixture,
            order=expand_ranges(start, stop),
        )
        self.config = config
        self.trainer = LoraTrainer(network, config.adapter, self.rows)
        self._lower = None
        if self.trainer.below:
            self.witness = self._plain  # the layers below have no graphs
            self._lower = LowerLayers(
                self._plain,
                self.tokens,
                self.trainer.below,
                rows=self.rows,
                window=config.window,
                chunk=config.documents.chunk_tokens,
            )
        self._graphs = CudaGraphs()
        self._own = own_batches(self.items, config.window, self.runtime)
        self.warm: dict[int, Matrices] = {}

    def run(self, item: DocumentBatch | Phase) -> None:
        """Score a batch, if it is one of this process's; or train in a phase."""
        if isinstance(item, Phase):
            with self.session.timed("adapt"):
                self.ledger.merge(self.runtime)
                self.train(phase_lesson(item, repeat_bos=self.config.documents.repeat_bos))
        elif item in self._own:
            with self.session.timed("score"), self.network.frozen():
                # the next pass is launched before scores are read, or the device would wait
                for enter in lag(self._launch_batch(item), 1):
                    enter()

    def train(self, lesson: Lesson) -> None:
        """Train the whole model on a phase's documents; adapters begin anew afterwards.

        Momentum begins at zero in each phase, and the rate falls over its chunks. The last chunk,
        full or not, is left out, as the records do.
        """
        config = self.config
        self.warm.clear()  # they were of use to weights that are now others
        sgd = SgdTrainer(self, config, chains=config.documents.chains, network=self._plain)
        count, size = len(lesson.inputs), config.chunk_tokens
        last = (count - 1) // size
        for index in range(last):
            sgd.train(lesson.part(slice(index * size, (index + 1) * size)), progress=index / last)
        self.network.requires_grad_(False).zero_grad()

    def state(self) -> State:
        """Merge the processes' ledgers; add the weights, if phases change them."""
        self.ledger.merge(self.runtime)
        state = super().state()
        if self.config.documents.phases:
            state["weights"] = self.network.state_dict()
        return state

    def own_state(self) -> State:
        """Return the warm A of this process's chains."""
        return {"warm": self.warm} if self.warm else {}

    def load_state(self, state: State) -> None:
        """Go on from what `state` returned, and `own_state` with it."""
        super().load_state(state)
        if self.config.documents.phases:
            self.network.load_state_dict(state["weights"])
        for chain, matrices in state.get("warm", {}).items():
            self.warm[chain] = {name: a.to(self.runtime.device) for name, a in matrices.items()}

    def pass_shapes(self, items: Sequence[DocumentBatch | Phase]) -> Iterator[PassShape]:
        """Yield the shapes of the passes that `items` need, and record those passes on a GPU."""
        window, trainer = self.config.window, self.trainer
        batches = [item for item in items if isinstance(item, DocumentBatch)]
        mine = [batch for batch in batches if batch in self._own]
        uses = Counter(shape for batch in mine for shape in batch_shapes(batch, self.rows, window))
        ordered, recorded = sorted(uses, reverse=True), set()
        if self.runtime.device.type == "cuda":
            recorded = {shape for shape in ordered if worth_recording(shape, uses[shape])}
        if self.runtime.is_main:
            say(f"documents: {len(ordered)} shapes of passes, {len(recorded)} to be recorded")
        # sizes are symbols of the graphs: the largest and the smallest pass compile for all
        for shape in sorted(recorded | {*ordered[:1], *ordered[-1:]}, reverse=True):
            rows, read, size = shape
            trainer.keep(rows)
            part = torch.arange(read - size, read, device=self.runtime.device)
            options = self._options(torch.zeros_like(part[:1]).expand(rows), read)
            yield PassShape(rows, read, part, options, learns=True)
        self.record_passes(sorted(recorded, reverse=True))

    def record_passes(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Record a pass of each of the warmed-up shapes (rows, tokens read and scored)."""
        device = self.runtime.device
        for shape in shapes:
            rows, read, size = shape
            self.trainer.keep(rows)
            inputs, targets = torch.zeros((2, rows, read), dtype=torch.int64, device=device)
            first, positions = (torch.zeros_like(inputs[0, :1].expand(n)) for n in (rows, size))
            places = torch.zeros_like(first)
            empty = DocumentPass(inputs, targets, first, places, positions, first.float())
            self._graphs.capture(shape, self._score_pass, empty, warm_ups=0)

    def _launch_batch(self, batch: DocumentBatch) -> Iterator[Callable[[], None]]:
        """Launch the passes and steps of a batch; yield for each pass what enters its scores.

        A step stands behind the pass that scored what it learns from, on the device as in the
        ledger.
        """
        rows, trainer = self.rows, self.trainer
        # rows without a document stay idle: fewer would be another shape to compile and record
        start, stop = (np.pad(x, (0, rows - len(x))) for x in (batch.start, batch.stop))
        # the batch that is not full has other rows than the next, and hands nothing on
        warm = self.config.documents.warm_a and batch.full
        trainer.renew(self.warm.get(batch.chain) if warm else None)
        if self._lower is not None:
            self._lower.begin(start, stop)
        handed = self.warm.get(batch.chain, {})  # overwritten, row by row, as documents end
        if warm and not handed:
            handed = {name: a.detach().clone() for name, a in trainer.adapters.a.items()}
            self.warm[batch.chain] = handed
        for begin, used in rows_in_use(batch, rows):
            if used < trainer.adapters.rows:
                trainer.keep(used)
            # the rows are sorted by length: those that go on come first, then those that end here
            goes_on, enter = self._launch_chunk(start[:used], stop[:used], begin, batch.chunk)
            ended = slice(int(goes_on.sum()), int((stop - start > begin).sum()))
            if warm:  # before the step, which would decay what has ended
                left = batch.chunks - 1 - begin // batch.chunk
                for name, a in trainer.adapters.a.items():
                    handed[name][ended] = a.detach()[ended] * self._idle_decay(left)
            if goes_on.any():
                trainer.step()
            yield enter

    def _idle_decay(self, steps: int) -> float:
        """Return what `steps` steps without a gradient leave of an A.

        A row whose document has ended is idle until the batch ends. Ours hands its A on as it was;
        in the records AdamW goes on to decay it.
        """
        adapter = self.config.adapter
        decayed = (1 - adapter.lr * adapter.decay) ** steps
        return decayed if self.config.documents.idle_decay else 1.0

    def _launch_chunk(
        self, start: np.ndarray, stop: np.ndarray, begin: int, size: int
    ) -> tuple[np.ndarray, Callable[[], None]]:
        """Score the chunk from token `begin` on of the documents start[i]..stop[i], int64 [B].

        Return which rows learn from it, bool [B], and what enters the scores and what is learned.
        Gradients are added. A document's last chunk is not learned from, and a row whose document
        has ended is idle.
        """
        first, window = start + begin, self.config.window
        width = min(begin + size, window)
        ends = first + size  # where the row's window ends
        if self.config.documents.last_window == "full":
            ends = np.minimum(ends, stop)  # so that a document's end moves the context of its chunk
        rows = np.maximum(np.minimum(ends - width, stop), np.where(first < stop, start, 0))
        read = round_width(width, window)
        goes_on = stop > first + size
        if self._lower is not None:
            self._lower.cover(len(start), begin + size)

        def run(batch: ScoringBatch) -> tuple[torch.Tensor, torch.Tensor]:
            return self._launch(batch, rows - start, goes_on)

        # whatever stands right of the chunk, up to the rounded width, no scored position can see
        part = slice(width - size, width)
        _, scores = self.score(rows, read, part, self.trainer.options(), run)
        targets = rows[:, None] + np.arange(width - size, width)
        scored = (first[:, None] <= targets) & (targets < stop[:, None])
        copied, learned = start_copy(scores), first[goes_on]

        def enter() -> None:
            self.ledger.score_at(targets[scored], copied()[scored])
            if len(learned):  # by now its scores are entered; only then is a chunk learned from
                self.ledger.update(learned, learned + size, own=True)

        return goes_on, enter

    def _launch(
        self, batch: ScoringBatch, places: np.ndarray, goes_on: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a pass's nats and scores; the rows that go on add their gradient.

        `places` int64 [B] are those in their documents that rows begin with.
        """
        assert isinstance(batch.part, slice)
        positions = torch.arange(batch.part.start, batch.part.stop, device=batch.first.device)
        learns = None  # a batch's last chunk: recorded passes add gradients, and do not fit
        if goes_on.any():
            learns = send(torch.from_numpy(goes_on.astype(np.float32)), batch.first.device)
        begins = send(torch.from_numpy(places), batch.first.device)
        given = DocumentPass(batch.inputs, batch.targets, batch.first, begins, positions, learns)
        key = (*batch.inputs.shape, len(positions))
        if self._graphs.fits(key, given):
            passed: tuple[torch.Tensor, torch.Tensor] = self._graphs(key, given)
            return passed
        return self._score_pass(given)

    def _score_pass(self, given: DocumentPass) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a pass's nats and scores [B, k], and add the gradient of the rows that learn.

        Each row's loss is the mean over the positions that it scores. Rows share no parameter that
        learns, so the sum of their losses gives each the gradient of its own.
        """
        inputs, targets, first, places, positions, learns = given
        options = self._options(places, inputs.shape[1])
        batch = ScoringBatch(inputs, targets, first, options, positions)
        nats, scores = self.nats(batch)
        if learns is not None:
            (nats.mean(dim=1) * learns).sum().backward()
        return nats.detach(), scores

    def _options(self, places: torch.Tensor, length: int) -> Pass:
        """Return the options of a pass of documents from their tokens `places` [B] on."""
        lower = self._lower
        return self.trainer.options(None if lower is None else lower.at(places, length))


def phase_lesson(phase: Phase, *, repeat_bos: bool) -> Lesson:
    """Return what is learned from the documents of a phase, one after another.

    A document's last target is the next one's BOS, and the next document begins with its own. Where
    `repeat_bos` both stand in the stream, as in the records: a BOS is then learned after each BOS,
    one target in some thousands that no text has.
    """
    if not repeat_bos:
        return Lesson.of_targets(expand_ranges(phase.start, phase.stop))
    tokens = expand_ranges(phase.start, phase.stop + 1)
    scored = np.ones(len(tokens), dtype=bool)
    scored[np.cumsum(phase.stop - phase.start + 1) - 1] = False  # the BOS that ends a document
    return Lesson(tokens[:-1], tokens[1:], scored[:-1])


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


def worth_recording(shape: tuple[int, int, int], uses: int) -> bool:
    """Tell whether replays of a pass save what it costs to record it: large ones hide launching."""
    rows, read, _ = shape
    return uses * (LAUNCH_SECONDS - rows * read / TOKENS_A_SECOND) > RECORD_SECONDS


def round_width(width: int, window: int) -> int:
    """Return the width of the pass for `width` tokens: causal, so what is added changes nothing."""
    return min(-(-width // WIDTH_STEP) * WIDTH_STEP, window)

"""Score documents side by side, each with an adapter that learns from its scored chunks (pg#1530).

A chunk is scored by a forward pass over the chunk and as many of the document's earlier tokens as
fit in the window. The backward pass then gives the gradient of the next step. So each chunk costs
one forward and one backward pass, and is scored before anything is learned from it. Layers below
all adapters run once for each token (`lower_layers`).
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
from paramgolf.runtime import send, start_copy
from paramgolf.scoring.config import TttConfig
from paramgolf.scoring.document_plan import (
    DocumentBatch,
    Phase,
    own_batches,
    plan_documents,
)
from paramgolf.scoring.ledger import Ledger, expand_ranges
from paramgolf.scoring.lora_adapter import LoraTrainer
from paramgolf.scoring.lower_layers import LowerLayers, rescales
from paramgolf.scoring.scorer import (
    PassShape,
    Scorer,
    ScoringBatch,
    State,
    lag,
)
from paramgolf.scoring.session import Session
from paramgolf.scoring.sgd import Lesson, SgdTrainer
from paramgolf.scoring.text import Text, find_documents

WIDTH_STEP = 256  # tokens: widths are multiples of it, so that shapes are few
ROW_STEPS = 8  # rows are dropped an eighth at a time
FEWEST_ROWS = 4
# Batches per chain between two synchronizations of the processes. By the plan's costs, on documents
# of the contest's lengths, four processes are busy 70 % of the time if they synchronize after each
# batch, and 96 % after every 8.
MEETING = 8
# on an H100: to launch a pass, to record it (with the pass before), and the speed of its kernels
LAUNCH_SECONDS, RECORD_SECONDS, TOKENS_A_SECOND = 0.07, 0.17, 770_000
Matrices = dict[str, torch.Tensor]


class DocumentPass(NamedTuple):
    """A pass as tensors alone, so that it can be recorded: see scorer.ScoringBatch.

    Attributes:
        places: the index in its document of each row's first token, int64 [B].
        positions: the positions of a row that are scored, int64 [k], the same in all rows.
        learns: 1 for rows that learn from the pass, 0 for the others, float32 [B]; None: none does.
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
    # processes synchronize to save their state, and each time all wait for the slowest
    every = MEETING * config.documents.chains if session.runtime.world > 1 else 1
    session.run(scorer, scorer.items, "documents", every=every)
    scorer.ledger.merge(session.runtime)
    return scorer.ledger


class DocumentScorer(Scorer):
    """Scores documents in batches. Batches of a chain share its warm A, and others share nothing.

    Each process has some of the chains and enters in its ledger the scores of its own batches.
    Short documents need short passes. On a GPU these are recorded as CUDA graphs, since launching
    their kernels one by one would take longer than running them.

    Attributes:
        items: the batches and phases in their order.
        warm: by chain, the A that its next full batch begins with (pg#1767).
    """

    def __init__(self, network: Network, text: Text, config: TttConfig, session: Session) -> None:
        self.items = plan_documents(*find_documents(text), config.documents, config.window)
        batches = [item for item in self.items if isinstance(item, DocumentBatch)]
        start = np.concatenate([batch.start for batch in batches])
        stop = np.concatenate([batch.stop for batch in batches])
        # for phases and lower layers, which need too few passes for graphs to pay
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
        # a base that follows a row's length would follow what is added to it as well
        self._width_step = 1 if rescales(network, config.window) else WIDTH_STEP
        self._graphs = CudaGraphs()
        self._own = own_batches(self.items, config.window, self.runtime)
        self.warm: dict[int, Matrices] = {}

    def run(self, item: DocumentBatch | Phase) -> None:
        """Train in a phase, or score a batch if it is one of this process's."""
        if isinstance(item, Phase):
            with self.session.timed("adapt"):
                self.ledger.merge(self.runtime)
                self.train(phase_lesson(item, repeat_bos=self.config.documents.repeat_bos))
        elif item in self._own:
            with self.session.timed("score"), self.network.frozen():
                # launch the next pass before reading scores, so that the device never waits
                for enter in lag(self._launch_batch(item), 1):
                    enter()

    def train(self, lesson: Lesson) -> None:
        """Train the whole model on a phase's documents; afterwards adapters start afresh.

        In each phase momentum starts at zero, and the learning rate falls from chunk to chunk. The
        last chunk, full or not, is left out, as in the records.
        """
        config = self.config
        self.warm.clear()  # they were learned for weights that change now
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
        """Continue from what `state` and `own_state` returned."""
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
        uses = Counter(
            shape
            for batch in mine
            for shape in batch_shapes(batch, self.rows, window, self._width_step)
        )
        ordered, recorded = sorted(uses, reverse=True), set()
        if self.runtime.device.type == "cuda":
            recorded = {shape for shape in ordered if worth_recording(shape, uses[shape])}
        if self.runtime.is_main:
            say(f"documents: {len(ordered)} shapes of passes, {len(recorded)} to be recorded")
        # compiled code has symbolic sizes: it is enough to compile the largest and smallest pass
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
        """Launch the passes and steps of a batch; yield for each pass a function that records it.

        The function enters the pass's scores, and what is learned from, in the ledger. Each step
        follows the pass that scored its targets, on the device and in the ledger.
        """
        rows, trainer = self.rows, self.trainer
        # rows without a document are idle: with fewer rows there would be one more shape to compile
        start, stop = (np.pad(x, (0, rows - len(x))) for x in (batch.start, batch.stop))
        # only full batches take and pass on a warm A: the rows of another do not match theirs
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
            # rows are sorted by length: first those that continue, then those that end here
            goes_on, enter = self._launch_chunk(start[:used], stop[:used], begin, batch.chunk)
            ended = slice(int(goes_on.sum()), int((stop - start > begin).sum()))
            if warm:  # before the step, which would decay the rows that have ended
                left = batch.chunks - 1 - begin // batch.chunk
                for name, a in trainer.adapters.a.items():
                    handed[name][ended] = a.detach()[ended] * self._idle_decay(left)
            if goes_on.any():
                trainer.step()
            yield enter

    def _idle_decay(self, steps: int) -> float:
        """Return the factor by which `steps` steps without a gradient multiply an A.

        A row whose document has ended is idle until the batch ends. In the records AdamW's weight
        decay still shrinks its A. Without `idle_decay` it is passed on unchanged.
        """
        adapter = self.config.adapter
        decayed = (1 - adapter.lr * adapter.decay) ** steps
        return decayed if self.config.documents.idle_decay else 1.0

    def _launch_chunk(
        self, start: np.ndarray, stop: np.ndarray, begin: int, size: int
    ) -> tuple[np.ndarray, Callable[[], None]]:
        """Launch the pass over the chunk at token `begin` of documents start..stop, int64 [B].

        Return which rows learn from the chunk, bool [B], and the function that records it in the
        ledger. Gradients are accumulated. Nothing is learned from a document's last chunk, and a
        row whose document has ended is idle.
        """
        first, window = start + begin, self.config.window
        width = min(begin + size, window)
        ends = first + size  # where the row's window ends
        if self.config.documents.last_window == "full":
            ends = np.minimum(ends, stop)  # so that a document's end moves the context of its chunk
        rows = np.maximum(np.minimum(ends - width, stop), np.where(first < stop, start, 0))
        read = round_width(width, window, self._width_step)
        goes_on = stop > first + size
        if self._lower is not None:
            self._lower.cover(len(start), begin + size)

        def run(batch: ScoringBatch) -> tuple[torch.Tensor, torch.Tensor]:
            return self._launch(batch, rows - start, goes_on)

        # attention is causal: what stands right of the chunk, up to `read`, changes no score
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
        """Return a pass's nats and scores; rows that continue accumulate their gradient.

        `places` int64 [B] is the index in its document of each row's first token.
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
        """Return a pass's nats and scores [B, k]; accumulate the gradient of the rows that learn.

        Each row's loss is the mean over the positions that it scores. Rows share no trainable
        parameter, so the gradient of the sum of their losses is, for each row, that of its own.
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
    """Return the lesson of a phase: its documents, one after another.

    A document's last target is the next document's BOS, which is also that document's first input.
    With `repeat_bos` it occurs twice in the lesson, as in the records: then the model also learns
    that BOS follows BOS, which is one target in several thousand and occurs in no text.
    """
    if not repeat_bos:
        return Lesson.of_targets(expand_ranges(phase.start, phase.stop))
    tokens = expand_ranges(phase.start, phase.stop + 1)
    scored = np.ones(len(tokens), dtype=bool)
    scored[np.cumsum(phase.stop - phase.start + 1) - 1] = False  # the BOS that ends a document
    return Lesson(tokens[:-1], tokens[1:], scored[:-1])


def rows_in_use(batch: DocumentBatch, rows: int) -> Iterator[tuple[int, int]]:
    """Yield for each chunk its first token in the document and the number of rows of its pass.

    Rows whose documents have ended are dropped, an eighth of `rows` at a time. A few idle ones may
    stay: they cost almost nothing, and each further number of rows would need graphs of its own.
    """
    lengths = batch.stop - batch.start
    every = max(FEWEST_ROWS, rows // ROW_STEPS)
    for begin in range(0, batch.chunks * batch.chunk, batch.chunk):
        active = int((lengths > begin).sum())
        step = FEWEST_ROWS if active <= FEWEST_ROWS else every
        rows = min(rows, -(-active // step) * step)
        yield begin, rows


def batch_shapes(
    batch: DocumentBatch, rows: int, window: int, step: int
) -> Iterator[tuple[int, int, int]]:
    """Yield the rows, the tokens read, and those scored, of each pass over a batch."""
    for begin, used in rows_in_use(batch, rows):
        yield used, round_width(min(begin + batch.chunk, window), window, step), batch.chunk


def worth_recording(shape: tuple[int, int, int], uses: int) -> bool:
    """Tell whether `uses` replays save more time than recording the pass costs.

    Large passes gain nothing: their kernels take longer than launching them.
    """
    rows, read, _ = shape
    return uses * (LAUNCH_SECONDS - rows * read / TOKENS_A_SECOND) > RECORD_SECONDS


def round_width(width: int, window: int, step: int) -> int:
    """Return the width of the pass for `width` tokens, a multiple of `step` or the window."""
    return min(-(-width // step) * step, window)

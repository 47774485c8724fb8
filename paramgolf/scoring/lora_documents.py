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
    phase_bounds,
    plan_groups,
    scoring_order,
)
from paramgolf.scoring.ledger import Ledger, spread
from paramgolf.scoring.low_rank import Learner
from paramgolf.scoring.mixture import Mixture, build_mixture, score_tokens
from paramgolf.scoring.sgd import SgdAdapter
from paramgolf.scoring.sliding import take_rows
from paramgolf.scoring.text import Text, find_documents
from paramgolf.scoring.timing import Timing

SMALLEST_WIDTH = 256  # tokens; widths double from here to the window, so that few graphs compile
FEWER_ROWS = 4  # rows are dropped when at most one in so many is in use
Matrices = dict[str, torch.Tensor]


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
    with timing.part("mixture"):
        scorer.mix(text, spread(start, stop))
    bounds = phase_bounds(config.documents)
    steps = [(group, batch) for group in groups for batch in group.batches]
    for group, batch in track(steps, "documents", total=len(steps), show=ranks.is_main):
        with timing.part("score"):
            scorer.run(batch)
        if batch is not group.batches[-1]:
            continue
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
        self._warm: dict[int, Matrices] = {}
        self._mixture: Mixture | None = None

    def mix(self, text: Text, order: np.ndarray) -> None:
        """Mix in what was counted in `order`, that of the targets document by document."""
        self._mixture = build_mixture(
            text,
            self._config.mixture,
            self._ledger,
            order=order,
            padding=self._config.window,
            device=self._ranks.device,
        )

    def run(self, batch: Batch) -> None:
        """Score a batch, chunk by chunk, if its lane is one of this process's."""
        if batch.lane not in self._lanes:
            return
        rows = self._config.documents.batch_documents
        # rows without a document stay idle, so that all batches have the same shape
        start, stop = (np.pad(x, (0, rows - len(x))) for x in (batch.start, batch.stop))
        lengths = stop - start
        learner = Learner(self._network, self._config.adapter, rows)
        learner.adapters.warm(self._warm.get(batch.lane, {}))
        for index in range(batch.chunks):
            begin = index * batch.chunk
            if begin + batch.chunk >= self._config.window:
                self._drop_rows(learner, int((lengths > begin).sum()))
            rows = learner.adapters.rows
            self._score_chunk(learner, start[:rows] + begin, stop[:rows], begin, batch.chunk)
            if self._config.documents.warm_a:
                ended = (lengths > begin) & (lengths <= begin + batch.chunk)
                self._hand_on(batch.lane, learner, np.flatnonzero(ended))

    def train(self, targets: np.ndarray) -> None:
        """Train the whole model on `targets`, in that order; adapters begin anew afterwards."""
        config = self._config
        self._warm.clear()
        self._network.requires_grad_(True)
        adapter = SgdAdapter(
            self._network,
            self._tokens,
            config,
            self._ranks,
            self._ledger,
            document_tokens=config.window,
        )
        chunks = np.split(targets, range(config.chunk_tokens, len(targets), config.chunk_tokens))
        for index, chunk in enumerate(chunks[:-1]):  # the last may be short; the records skip it
            adapter.adapt(chunk, progress=index / (len(chunks) - 1))
        self._network.requires_grad_(False).zero_grad()

    def _score_chunk(
        self, learner: Learner, first: np.ndarray, stop: np.ndarray, begin: int, size: int
    ) -> None:
        """Score the targets first[i]..first[i] + size of each row, and learn from them.

        `begin` is the tokens of a document before the chunk. A row whose document ends in the
        chunk learns no more, and one whose document has ended is idle.
        """
        width = min(begin + size, self._config.window)
        # where the window begins must not depend on where the document ends
        starts = np.minimum(first + size - width, stop)
        inputs, targets = take_rows(self._tokens, starts, round_width(width, self._config.window))
        part = slice(width - size, width)
        nats, mixed = score_tokens(
            self._network,
            inputs,
            targets,
            learner.options(),
            part=part,
            mixture=self._mixture,
            first=torch.from_numpy(starts).to(self._ranks.device),
        )
        scores = start_copy(mixed)
        goes_on = stop > first + size
        if goes_on.any():
            losses = nats.mean(dim=1) * torch.from_numpy(goes_on).to(nats.device)
            losses.sum().backward()
        positions = first[:, None] + np.arange(size)
        scored = positions < stop[:, None]
        self._ledger.score_at(positions[scored], scores()[scored])
        if goes_on.any():
            self._ledger.update(first[goes_on], first[goes_on] + size, own=True)
            learner.step()

    def _drop_rows(self, learner: Learner, active: int) -> None:
        """Drop rows that the longest documents do without."""
        fewer = learner.adapters.rows
        while fewer % FEWER_ROWS == 0 and active <= fewer // FEWER_ROWS:
            fewer //= FEWER_ROWS
        if fewer < learner.adapters.rows:
            learner.keep(fewer)

    def _hand_on(self, lane: int, learner: Learner, rows: np.ndarray) -> None:
        """Keep the first matrices of `rows`, whose documents have ended, for the lane's next batch.

        Idle rows go on to decay; what is handed on must not depend on how long.
        """
        learned = {name: a.detach() for name, a in learner.adapters.a.items()}
        if lane not in self._warm:
            self._warm[lane] = {name: a.clone() for name, a in learned.items()}
        for name, a in learned.items():
            self._warm[lane][name][:, rows] = a[:, rows]


def round_width(width: int, window: int) -> int:
    """Return the width of the pass for `width` tokens: causal, so what is added changes nothing."""
    rounded = SMALLEST_WIDTH
    while rounded < width:
        rounded *= 2
    return min(rounded, window)


def start_copy(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    """Begin to copy `tensor` to the host; the function returned waits for that copy alone.

    Work queued on the device in between goes on. float64.
    """
    host = tensor.to("cpu", non_blocking=True)
    copied = torch.cuda.Event() if tensor.is_cuda else None
    if copied is not None:
        copied.record()

    def wait() -> np.ndarray:
        if copied is not None:
            copied.synchronize()
        return host.double().numpy()

    return wait

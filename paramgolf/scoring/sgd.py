"""Test-time training of the whole model: score a chunk, then learn from it (pg#461, pg#1413).

The order is the rule of the contest: the tokens of a chunk are scored by weights that have not seen
them, and only then trained on, so that what is learned can help later text alone. Score after
training instead, and the score measures memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from paramgolf.model.network import Network, Pass
from paramgolf.runtime import Runtime, send, share
from paramgolf.scoring.config import TttConfig
from paramgolf.scoring.ledger import find_ranges
from paramgolf.scoring.scorer import Host, PassShape, Scorer, State
from paramgolf.scoring.text import Text
from paramgolf.scoring.windows import ScoringWindows


class SgdTrainer:
    """SGD with momentum on every parameter; the rate falls as a cosine over the chunks (pg#1413).

    Momentum lives on from chunk to chunk. Processes share the sequences of an update and average
    their gradients, so that all hold the same weights. With `document_tokens` attention stays
    inside a document (Pass).
    """

    def __init__(
        self, scorer: Scorer, config: TttConfig, *, document_tokens: int | None = None
    ) -> None:
        self._scorer, self._config, self._runtime = scorer, config, scorer.runtime
        self._options = sgd_options(scorer.network, document_tokens)
        self._parameters = list(scorer.network.parameters())
        # never None, so that a process without sequences joins the sums all the same
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self.optimizer = torch.optim.SGD(self._parameters, lr=0.0, momentum=config.momentum)

    def train(self, targets: Sequence[int] | np.ndarray, progress: float) -> None:
        """Learn from a chunk of targets, `epochs` times; `progress` is the share of chunks done.

        The targets are cut into sequences of `window`; they may come from several places of the
        text. LedgerError where one has no score yet.
        """
        config = self._config
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * progress))
        rows = np.asarray(targets).reshape(-1, config.window)
        for _ in range(config.epochs):
            for begin in range(0, len(rows), config.batch_sequences):
                self._update(rows[begin : begin + config.batch_sequences])

    def _update(self, rows: np.ndarray) -> None:
        scorer = self._scorer
        scorer.ledger.update(*find_ranges(rows.ravel()))
        self.optimizer.zero_grad(set_to_none=False)
        mine = rows[share(len(rows), self._runtime)]
        if len(mine):
            index = send(torch.from_numpy(mine), self._runtime.device)
            inputs, targets = scorer.tokens[index].long(), scorer.tokens[index + 1].long()
            options = scorer.segmented(mine, self._options)
            # the mean over all processes' targets: their gradients are then summed
            loss = scorer.network.nll(inputs, targets, options).sum() / rows.size
            loss.backward()
        for gradient in self._gradients:
            self._runtime.sum(gradient)
        if self._config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip_norm)
        self.optimizer.step()


class ChunkScorer(Scorer):
    """Scores each chunk with what was learned by SGD from the chunks before it (none: nothing).

    The last chunk is not learned from: nothing is left to score.
    """

    def __init__(self, network: Network, text: Text, config: TttConfig, session: Host) -> None:
        window, rows = config.window, config.batch_windows
        super().__init__(network, text, session, length=window, rows=rows, mixing=config.mixture)
        self._config = config
        self._trainer = SgdTrainer(self, config) if config.mode == "sgd" else None

    def run(self, item: ScoringWindows) -> None:
        """Score a chunk of windows, then learn from it."""
        super().run(item)
        targets = item.targets
        if self._trainer is not None and targets.stop < len(self.text):
            last = (len(self.text) - 1) // self._config.chunk_tokens
            with self.session.timed("adapt"):
                index = targets.start // self._config.chunk_tokens
                self._trainer.train(targets, progress=index / last)

    def state(self) -> State:
        """Add the weights and the momenta."""
        state = super().state()
        if self._trainer is not None:
            state["weights"] = self.network.state_dict()
            state["momenta"] = self._trainer.optimizer.state_dict()
        return state

    def load_state(self, state: State) -> None:
        """Go on from what `state` returned, and `own_state` with it."""
        super().load_state(state)
        if self._trainer is not None:
            self.network.load_state_dict(state["weights"])
            self._trainer.optimizer.load_state_dict(state["momenta"])

    def pass_shapes(self, items: Sequence[ScoringWindows]) -> Iterator[PassShape]:
        """Yield the shapes of the passes that `items` need."""
        yield from super().pass_shapes(items)
        if self._trainer is not None and len(items) > 1:
            yield from sgd_shapes(self.network, self._config, self.runtime)


def sgd_options(network: Network, document_tokens: int | None = None) -> Pass:
    """Return the options of the passes that are learned from."""
    return Pass(network.config.orders[-1], document_tokens=document_tokens)


def sgd_shapes(
    network: Network, config: TttConfig, runtime: Runtime, document_tokens: int | None = None
) -> Iterator[PassShape]:
    """Yield the shapes of this process's passes over a chunk."""
    rows, batch = config.chunk_tokens // config.window, config.batch_sequences
    sizes = {min(batch, rows - begin) for begin in range(0, rows, batch)}
    for size in sorted({len(share(size, runtime)) for size in sizes} - {0}):
        options = sgd_options(network, document_tokens)
        yield PassShape(size, config.window, slice(None), options, learns=True)

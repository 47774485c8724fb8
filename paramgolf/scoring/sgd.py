"""Test-time training of the whole model: score a chunk, then learn from it (pg#461, pg#1413).

The order is the rule of the contest: the tokens of a chunk are scored by weights that have not seen
them, and only then trained on, so that what is learned can help later text alone. Score after
training instead, and the score measures memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from paramgolf.model.network import Network, Pass
from paramgolf.runtime import Runtime, send, share
from paramgolf.scoring.config import TttConfig
from paramgolf.scoring.ledger import find_ranges
from paramgolf.scoring.scorer import PassShape, Scorer, State
from paramgolf.scoring.session import Session
from paramgolf.scoring.text import Text
from paramgolf.scoring.windows import ScoringWindows


class Lesson(NamedTuple):
    """What is learned from, as indices of tokens in the text, int64 [n] each.

    Input i is followed by the token targets[i]; where `scored` (bool [n]) that is the text's own
    target, which must have its score by then.
    """

    inputs: np.ndarray
    targets: np.ndarray
    scored: np.ndarray

    @classmethod
    def of_targets(cls, targets: Sequence[int] | np.ndarray) -> Lesson:
        """Return the lesson of some targets of the text: target j is the token after input j."""
        inputs = np.asarray(targets)
        return cls(inputs, inputs + 1, np.ones(len(inputs), dtype=bool))

    def sequences(self, length: int) -> Lesson:
        """Return the whole sequences of `length` as rows [m, length]; the rest is left out."""
        count = len(self.inputs) // length
        return Lesson(*(x[: count * length].reshape(count, length) for x in self))

    def part(self, which: slice) -> Lesson:
        """Return a part of the tokens, or of the sequences."""
        return Lesson(*(x[which] for x in self))


class SgdTrainer:
    """SGD with momentum on all trained parameters, with a cosine learning rate (pg#1413).

    Momentum is kept from chunk to chunk. Without `chains` each sequence is a row of its own. With
    them attention stays inside a document, and the sequences of an update are dealt out to the
    chains: those of a chain are one row, in which a document goes on from one sequence to the next.
    Processes share the rows and average their gradients, so that all hold the same weights.
    Another `network` than the scorer's may compute, with the same parameters.
    """

    def __init__(
        self,
        scorer: Scorer,
        config: TttConfig,
        *,
        chains: int | None = None,
        network: Network | None = None,
    ) -> None:
        self._scorer, self._config, self._runtime = scorer, config, scorer.runtime
        self._chains, self._network = chains, network or scorer.network
        self._options = sgd_options(scorer.network, config, chains)
        # parameters that no optimizer trains are constants of the published losses too
        self._parameters = [
            p for p in scorer.network.requires_grad_().parameters() if p.requires_grad
        ]
        # never None: a process without sequences must take part in the sums too
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self.optimizer = torch.optim.SGD(self._parameters, lr=0.0, momentum=config.momentum)

    def train(self, lesson: Lesson, progress: float) -> None:
        """Learn from a chunk, `epochs` times; `progress` is the share of chunks done.

        The tokens are cut into sequences of `window`; they may come from several places of the
        text. LedgerError where a target has no score yet.
        """
        config = self._config
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * progress))
        sequences = lesson.sequences(config.window)
        for _ in range(config.epochs):
            for begin in range(0, len(sequences.inputs), config.batch_sequences):
                self._update(sequences.part(slice(begin, begin + config.batch_sequences)))

    def _update(self, sequences: Lesson) -> None:
        scorer, device = self._scorer, self._runtime.device
        # entered before the step: a refused update leaves the weights as they are
        scorer.ledger.update(*find_ranges(sequences.inputs[sequences.scored]))
        self.optimizer.zero_grad(set_to_none=False)
        for rows in passes(len(sequences.inputs), self._chains, self._runtime):
            inputs, targets = (
                np.stack([x[row.start : row.stop].ravel() for row in rows])
                for x in (sequences.inputs, sequences.targets)
            )
            tokens, wanted = (
                scorer.tokens[send(torch.from_numpy(x), device)].long() for x in (inputs, targets)
            )
            nats = self._network.nll(tokens, wanted, scorer.segmented(inputs, self._options))
            # the mean over the targets of all processes, whose gradients are then summed
            (nats.sum() / sequences.inputs.size).backward()
        for gradient in self._gradients:
            self._runtime.sum(gradient)
        # of the whole update's gradient, not of a process's part: so the number of processes does
        # not change what is clipped
        if self._config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip_norm)
        self.optimizer.step()


class ChunkScorer(Scorer):
    """Scores each chunk with the weights that SGD learned from the chunks before it.

    The last chunk is not learned from: nothing is left to score.
    """

    def __init__(self, network: Network, text: Text, config: TttConfig, session: Session) -> None:
        window, rows = config.window, config.batch_windows
        super().__init__(network, text, session, length=window, rows=rows, mixing=config.mixture)
        self._config = config
        self._trainer = SgdTrainer(self, config) if config.mode == "sgd" else None

    def run(self, item: ScoringWindows) -> None:
        """Score a chunk of windows, then learn from it."""
        super().run(item)
        targets = item.targets
        if self._trainer is not None and targets.stop < len(self.text):
            # the rate depends on how many chunks there are, a fact of the text's length alone
            last = (len(self.text) - 1) // self._config.chunk_tokens
            index = targets.start // self._config.chunk_tokens
            with self.session.timed("adapt"):
                self._trainer.train(Lesson.of_targets(targets), progress=index / last)

    def state(self) -> State:
        """Add the weights and the momenta."""
        state = super().state()
        if self._trainer is not None:
            state["weights"] = self.network.state_dict()
            state["momenta"] = self._trainer.optimizer.state_dict()
        return state

    def load_state(self, state: State) -> None:
        """Continue from what `state` and `own_state` returned."""
        super().load_state(state)
        if self._trainer is not None:
            self.network.load_state_dict(state["weights"])
            self._trainer.optimizer.load_state_dict(state["momenta"])

    def pass_shapes(self, items: Sequence[ScoringWindows]) -> Iterator[PassShape]:
        """Yield the shapes of the passes that `items` need."""
        yield from super().pass_shapes(items)
        if self._trainer is not None and len(items) > 1:
            yield from sgd_shapes(self.network, self._config, self.runtime)


def sgd_options(network: Network, config: TttConfig, chains: int | None) -> Pass:
    """Return the options of the passes that are learned from."""
    return Pass(network.config.orders[-1], document_tokens=config.window if chains else None)


def passes(count: int, chains: int | None, runtime: Runtime) -> list[list[range]]:
    """Return this process's passes over `count` sequences: rows of one length, ranges of them.

    A row is a sequence, or what one of the chains has of them.
    """
    if chains is None:
        rows = [range(i, i + 1) for i in share(count, runtime)]
    else:
        mine = share(chains, runtime)
        rows = [range(count * c // chains, count * (c + 1) // chains) for c in mine]
    lengths = sorted({len(row) for row in rows} - {0})
    return [[row for row in rows if len(row) == length] for length in lengths]


def sgd_shapes(network: Network, config: TttConfig, runtime: Runtime) -> Iterator[PassShape]:
    """Yield the shapes of this process's passes over a chunk, without chains."""
    count, batch = config.chunk_tokens // config.window, config.batch_sequences
    sizes = {min(batch, count - begin) for begin in range(0, count, batch)}
    shapes = {(len(rows), len(rows[0])) for size in sizes for rows in passes(size, None, runtime)}
    for rows, sequences in sorted(shapes):
        options = sgd_options(network, config, None)
        yield PassShape(rows, sequences * config.window, slice(None), options, learns=True)

"""Stochastic gradient descent on every parameter, on targets already scored (#1413, #1610)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from paramgolf.model.network import Network, Pass
from paramgolf.runtime import Runtime, send, share
from paramgolf.scoring.config import AdaptConfig
from paramgolf.scoring.ledger import spans
from paramgolf.scoring.scorer import Rehearsal, Scorer


class SgdAdapter:
    """SGD with momentum on every parameter; the rate falls as a cosine over the chunks (#1413).

    Momentum lives on from chunk to chunk. Processes share the sequences of an update and average
    their gradients, so that all hold the same weights. With `document_tokens` attention stays
    inside a document (Pass).
    """

    def __init__(
        self, scorer: Scorer, config: AdaptConfig, *, document_tokens: int | None = None
    ) -> None:
        self._scorer, self._config, self._runtime = scorer, config, scorer.runtime
        self._options = sgd_options(scorer.network, document_tokens)
        self._parameters = list(scorer.network.parameters())
        # never None, so that a process without sequences joins the sums all the same
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self.optimiser = torch.optim.SGD(self._parameters, lr=0.0, momentum=config.momentum)

    def adapt(self, targets: Sequence[int] | np.ndarray, progress: float) -> None:
        """Learn from a chunk of targets, `epochs` times; `progress` is the share of chunks done.

        The targets are cut into sequences of `window`; they need not be neighbours in the text.
        """
        config = self._config
        for group in self.optimiser.param_groups:
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * progress))
        rows = np.asarray(targets).reshape(-1, config.window)
        for _ in range(config.epochs):
            for begin in range(0, len(rows), config.batch_sequences):
                self._update(rows[begin : begin + config.batch_sequences])

    def _update(self, rows: np.ndarray) -> None:
        scorer = self._scorer
        scorer.ledger.update(*spans(rows.ravel()))
        self.optimiser.zero_grad(set_to_none=False)
        mine = rows[share(len(rows), self._runtime)]
        if len(mine):
            index = send(torch.from_numpy(mine), self._runtime.device)
            inputs, goals = scorer.tokens[index].long(), scorer.tokens[index + 1].long()
            options = scorer.parted(mine, self._options)
            loss = scorer.network.nll(inputs, goals, options).sum() / rows.size
            loss.backward()
        for gradient in self._gradients:
            self._runtime.sum(gradient)
        if self._config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip_norm)
        self.optimiser.step()


def sgd_options(network: Network, document_tokens: int | None = None) -> Pass:
    """Return the options of the passes that are learned from."""
    return Pass(network.config.orders[-1], document_tokens=document_tokens)


def sgd_rehearsals(
    network: Network, config: AdaptConfig, runtime: Runtime, document_tokens: int | None = None
) -> Iterator[Rehearsal]:
    """Yield the shapes of this process's passes over a chunk."""
    rows, batch = config.chunk_tokens // config.window, config.batch_sequences
    sizes = {min(batch, rows - begin) for begin in range(0, rows, batch)}
    for size in sorted({len(share(size, runtime)) for size in sizes} - {0}):
        options = sgd_options(network, document_tokens)
        yield Rehearsal(size, config.window, slice(None), options, learns=True)

"""Score a chunk of the text, then learn from it: score-first test-time training (#461, #1413)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from paramgolf.model.network import Network, Pass
from paramgolf.progress import track
from paramgolf.runtime import Ranks, share
from paramgolf.scoring.config import AdaptConfig
from paramgolf.scoring.evaluation import Evaluation, load_network, summary
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.sliding import score_fixed, score_windows, take_rows
from paramgolf.scoring.text import Text, load_text
from paramgolf.scoring.timing import Timing
from paramgolf.scoring.windows import sliding_windows, split_chunks


def score_adaptive(
    package: str | Path, tokens: str | Path, config: AdaptConfig, ranks: Ranks
) -> Evaluation:
    """Score a packed model that adapts as it goes; every process joins in.

    The metrics' plain score is of the weights as they were packed.
    """
    timing = Timing(ranks.device)
    window, rows = config.window, config.batch_windows
    with timing.part("load"):
        network = load_network(package, ranks)
        text = load_text(tokens, network.vocab_size, config.max_tokens)
    with timing.part("plain"):
        plain = score_fixed(network, text, ranks, window=window, stride=window, rows=rows)
    ledger = score_and_adapt(network, text, config, ranks, timing)
    metrics = {**summary(text, ledger, plain, timing), "updates": len(ledger.updates)}
    return Evaluation(metrics, text, ledger.nats)


def score_and_adapt(
    network: Network, text: Text, config: AdaptConfig, ranks: Ranks, timing: Timing
) -> Ledger:
    """Score each chunk with what was learned from the chunks before it; return the ledger, full.

    The network's weights change. The last chunk is not learned from: nothing is left to score.
    """
    ledger = Ledger(len(text))
    tokens = text.rows_source(config.window, ranks.device)
    windows = sliding_windows(len(text), config.window, config.stride)
    chunks = list(split_chunks(windows, config.chunk_tokens))
    adapter = SgdAdapter(network, tokens, config, ranks, ledger) if config.mode == "sgd" else None
    show = ranks.is_main
    for index, chunk in enumerate(track(chunks, "score, adapt", total=len(chunks), show=show)):
        with timing.part("score"):
            score_windows(network, tokens, chunk, ranks, ledger, rows=config.batch_windows)
        with timing.part("adapt"):
            if adapter is not None and index + 1 < len(chunks):
                adapter.adapt(chunk.targets, progress=index / (len(chunks) - 1))
    return ledger


class SgdAdapter:
    """SGD with momentum on every parameter; the rate falls as a cosine over the chunks (#1413).

    Momentum lives on from chunk to chunk. Processes share the sequences of an update and average
    their gradients, so that all hold the same weights.
    """

    def __init__(
        self,
        network: Network,
        tokens: torch.Tensor,
        config: AdaptConfig,
        ranks: Ranks,
        ledger: Ledger,
    ) -> None:
        self._network, self._tokens = network, tokens
        self._config, self._ranks, self._ledger = config, ranks, ledger
        self._parameters = list(network.parameters())
        # never None, so that a process without sequences joins the sums all the same
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self._optimiser = torch.optim.SGD(self._parameters, lr=0.0, momentum=config.momentum)

    def adapt(self, targets: range, progress: float) -> None:
        """Learn from a chunk of targets, `epochs` times; `progress` is the share of chunks done."""
        config = self._config
        for group in self._optimiser.param_groups:
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * progress))
        starts = np.arange(targets.start, targets.stop, config.window)
        for _ in range(config.epochs):
            for begin in range(0, len(starts), config.batch_sequences):
                self._update(starts[begin : begin + config.batch_sequences])

    def _update(self, starts: np.ndarray) -> None:
        length = self._config.window
        self._ledger.update(starts[:1], starts[-1:] + length)
        self._optimiser.zero_grad(set_to_none=False)
        mine = starts[share(len(starts), self._ranks)]
        if len(mine):
            inputs, goals = take_rows(self._tokens, mine, length)
            options = Pass(order=self._network.config.orders[-1])
            loss = self._network.nll(inputs, goals, options).sum() / (len(starts) * length)
            loss.backward()
        for gradient in self._gradients:
            self._ranks.sum(gradient)
        if self._config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip_norm)
        self._optimiser.step()

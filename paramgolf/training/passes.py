"""Forward and backward of a step, in micro-batches that are replayed from captured graphs.

The loss of a step is the mean over the tokens of its global batch B, whatever the processes and
micro-batches: each micro-batch m adds the gradient of sum over m of nll / |B|, so that the sum over
micro-batches and processes is that of the mean, in any partition.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from paramgolf.model.config import ModelConfig, Order
from paramgolf.model.cuda_graph import CudaGraphs
from paramgolf.model.head import Further
from paramgolf.model.network import Network, Pass
from paramgolf.runtime import Runtime
from paramgolf.training.batches import Batch, Batches
from paramgolf.training.config import TrainConfig
from paramgolf.training.regime import Regime, regimes
from paramgolf.training.state import TrainState


class Passes:
    """Computes the gradient of a run's steps; `further` makes further targets of a batch."""

    def __init__(
        self,
        model: ModelConfig,
        config: TrainConfig,
        batches: Batches,
        runtime: Runtime,
        further: Callable[[Tensor], Further] | None = None,
    ) -> None:
        self._model, self._config, self._further = model, config, further
        self._batches, self._runtime = batches, runtime
        self._graphs = CudaGraphs()

    def warm_up(self, state: TrainState) -> None:
        """Compile, and on a GPU capture, the passes of every regime, on random tokens.

        This takes minutes, which must not count as training. Nothing is learned from it: weights,
        moments and batches stay as they are, and the gradients are zero afterwards.
        """
        network = state.network
        for regime in sorted(regimes(self._model, self._config), key=lambda r: (r[0].at, r[1])):
            state.zero_grad()
            batch = self._batches.random(regime.sizes, network.vocab_size)
            work = functools.partial(self._backward, network, regime)
            work(batch)
            if self._runtime.device.type == "cuda":
                self._graphs.capture(regime, work, batch)
        state.zero_grad()

    def gradient(self, network: Network, regime: Regime, consumed: int) -> Tensor:
        """Add a step's gradient to this process's parameters; return the step's loss (scalar).

        The step is the one that follows `consumed` tokens of training. The gradient is this
        process's part, the loss is that of all processes.
        """
        loss = torch.zeros((), device=self._runtime.device)
        for batch in self._batches.read(regime.sizes, consumed):
            loss += self._accumulate(network, regime, batch)
        return self._runtime.sum(loss)

    def _accumulate(self, network: Network, regime: Regime, batch: Batch) -> Tensor:
        # a captured graph holds the pass of plain weights; rounded ones are another pass
        if network.backend.fake_quant is None and self._graphs.fits(regime, batch):
            loss: Tensor = self._graphs(regime, batch)
            return loss
        return self._backward(network, regime, batch)

    def _backward(self, network: Network, regime: Regime, batch: Batch) -> Tensor:
        return backward(
            network,
            batch,
            regime.order(self._model),
            longest=self._config.document_tokens(regime.sizes),
            batch_tokens=regime.sizes.batch_tokens,
            precision=self._config.precision,
            further=None if self._further is None else self._further(batch.tokens),
        )


def backward(
    network: Network,
    batch: Batch,
    order: Order,
    *,
    longest: int | None,
    batch_tokens: int,
    precision: str,
    further: Further | None = None,
) -> Tensor:
    """Add the gradient of a micro-batch; return its share of the mean over `batch_tokens`.

    `longest` is how many tokens of its document a token may see, or None: the whole row.
    `precision` is TrainConfig's.
    """
    if precision == "fp8_mlp":
        from paramgolf.model.fp8 import with_short_mlp  # see packing/code.py

        network = network.with_backend(with_short_mlp(network.backend, batch_tokens))
    segments = batch.segments(longest)
    options = Pass(order, document_tokens=longest, segments=segments, further=further)
    nll = network.nll(batch.tokens[:, :-1], batch.tokens[:, 1:], options)
    loss = nll.sum() / batch_tokens
    loss.backward()
    return loss.detach()

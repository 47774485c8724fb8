"""Forward and backward of a step, in micro-batches that are replayed from captured graphs.

The loss of a step is the mean over the tokens of its global batch B, whatever the processes and
micro-batches: each micro-batch m adds the gradient of sum over m of nll / |B|, so that the sum over
micro-batches and processes is that of the mean, in any partition.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from paramgolf.data.special_tokens import BOS
from paramgolf.model.config import ModelConfig, Order
from paramgolf.model.cuda_graph import CudaGraphs
from paramgolf.model.head import NO_TARGET, Second
from paramgolf.model.network import Network, Pass
from paramgolf.runtime import Runtime
from paramgolf.training.batches import Batch, Batches
from paramgolf.training.config import TrainConfig
from paramgolf.training.regime import Regime, regimes
from paramgolf.training.state import TrainState


class Passes:
    """Computes the gradient of a run's steps."""

    def __init__(
        self, model: ModelConfig, config: TrainConfig, batches: Batches, runtime: Runtime
    ) -> None:
        self._model, self._config = model, config
        self._batches, self._runtime = batches, runtime
        self._graphs = CudaGraphs()
        self._second_weight = None
        if config.second_token_weight:  # a tensor, which captured graphs read
            self._second_weight = torch.zeros((), device=runtime.device)

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

    def weigh_second_tokens(self, weight: float) -> None:
        """Set the weight of the second tokens' loss for every pass from now on."""
        if self._second_weight is not None:
            self._second_weight.fill_(weight)

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
            second_weight=self._second_weight,
        )


def backward(
    network: Network,
    batch: Batch,
    order: Order,
    *,
    longest: int | None,
    batch_tokens: int,
    precision: str,
    second_weight: Tensor | None = None,
) -> Tensor:
    """Add the gradient of a micro-batch; return its share of the mean over `batch_tokens`.

    `longest` is how many tokens of its document a token may see, or None: the whole row.
    `precision` is TrainConfig's. `second_weight` (scalar) is that of the second tokens' loss.
    """
    if precision == "fp8_mlp":
        from paramgolf.model.fp8 import with_short_mlp  # see packing/code.py

        network = network.with_backend(with_short_mlp(network.backend, batch_tokens))
    segments = batch.segments(longest)
    second = None
    if second_weight is not None:
        second = Second(second_tokens(batch.tokens), second_weight)
    options = Pass(order, document_tokens=longest, segments=segments, second=second)
    nll = network.nll(batch.tokens[:, :-1], batch.tokens[:, 1:], options)
    loss = nll.sum() / batch_tokens
    loss.backward()
    return loss.detach()


def second_tokens(tokens: Tensor) -> Tensor:
    """Return what comes after each target of rows of tokens [n, T + 1], int64 [n, T].

    Where a row ends before it, or a document (its last target is the BOS of the next), there is
    NO_TARGET.
    """
    after = F.pad(tokens[:, 2:], (0, 1), value=NO_TARGET)
    return after.masked_fill(tokens[:, 1:] == BOS, NO_TARGET)

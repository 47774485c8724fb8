"""How far a quantized network's tokens are from the trained one's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from paramgolf.model.network import Network, Pass


@torch.no_grad()
def log_probabilities(
    network: Network, text_BT: Tensor, tap: Callable[[str, int, Tensor], None] | None = None
) -> Tensor:
    """Return the log probabilities of the next token, [B, T, V], in the last layer order.

    `tap` is shown the inputs of matrices (model.network.Pass).
    """
    options = Pass(order=network.config.orders[-1], tap=tap)
    return torch.log_softmax(network.logits(text_BT, options), -1)


def divergence(right: Tensor, found: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence of log probabilities [B, T, V], nats a token."""
    return (right.exp() * (right - found)).sum(-1).mean()

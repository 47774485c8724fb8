"""Connections whose strengths each token chooses (MUDD, multiway dynamic dense, arXiv 2502.12170).

A token adds to a stream earlier states s_j in shares c_j that follow from its own state x:

    c = 0.1 (W2 gelu(RMSNorm(W1 x)) + b),    y <- y + sum_j c_j s_j

There are two such places, with a W1 each: before the last block, into each of its lanes and into
its values; and before the head, into the joined lanes. The states are x0, the middle of the network
(the newest output that is kept for skips) and the lanes. W2 and b begin as 0, so that nothing is
added at first. The norm is taken after W1, not before: so x is read once.

Shapes: B rows, T tokens, d width, m hidden channels, L lanes; S = L + 2 states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from paramgolf.model.operations import norm

SCALE = 0.1  # of c: W2 may learn at the rate of other small tensors


class Dense(NamedTuple):
    """One place's weights, in the compute dtype, and the states that all places add."""

    states: tuple[Tensor, ...]  # x0 and the middle, [B, T, d]
    inner: Tensor  # W1 [m, d]
    outer: Tensor  # W2 [streams, S, m]
    bias: Tensor  # [streams, S]


def additions(x: Tensor, lanes: Sequence[Tensor], dense: Dense) -> list[Tensor]:
    """Return for each stream what a token adds to it, sum_j c_j s_j [B, T, d], float32.

    x [B, T, d] is the state that c follows from; it and the lanes are states of one token alone.
    """
    hidden = F.gelu(norm(F.linear(x, dense.inner)))
    shares = F.linear(hidden, dense.outer.flatten(0, 1), dense.bias.flatten())
    states = [state.float() for state in (*dense.states, *lanes)]
    sums = []
    for shares_BTS in (SCALE * shares.float()).chunk(len(dense.outer), dim=-1):
        parts = [c * s for c, s in zip(shares_BTS.split(1, dim=-1), states, strict=True)]
        sums.append(sum(parts[1:], parts[0]))
    return sums

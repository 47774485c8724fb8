"""The tied head: softcapped logits, and the negative log-likelihood of targets.

Shapes: B rows, T tokens, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from paramgolf.model.block import Lanes, Pair, low_rank
from paramgolf.model.mudd import Dense, additions
from paramgolf.model.operations import norm


class Head(NamedTuple):
    """The weights of the head, in the compute dtype, and its caps."""

    embedding: Tensor  # [V, d]
    softcap: float
    sides: Tensor | None = None  # [2] float32: caps of positive and negative logits (pg#1923)
    adapter: Pair | None = None
    lane_merge: Tensor | None = None  # scalar: the first lane's share
    dense: Dense | None = None  # what each token adds to the joined lanes


def head_input(lanes: Lanes, head: Head) -> Tensor:
    """Return the last layer's lanes [B, T, d] joined to one, normalized."""
    x = lanes[0]
    if len(lanes) == 2:
        # m a + (1 - m) b, or as published; the norm undoes the half
        m = head.lane_merge
        x = (lanes[0] + lanes[1]) / 2 if m is None else torch.lerp(lanes[1], lanes[0], m)
    if head.dense is not None:
        (y,) = additions(lanes[0], lanes, head.dense)
        x = x + y.to(x.dtype)
    return norm(x)


def lanes_nll(
    lanes: Lanes, targets: Tensor, head: Head, nll: Callable[[Tensor, Tensor, Head], Tensor]
) -> Tensor:
    """Return what `nll`, which is `head_nll` or a fused form, says of the last layer's lanes."""
    return nll(head_input(lanes, head), targets, head)


def head_logits(hidden: Tensor, head: Head) -> Tensor:
    """Return cap * tanh(z / cap) of z = hidden [..., d] embedding^T, float32 [..., V]."""
    # the cap, and the exponentials of the loss, are float32: bfloat16 has 8 bits for logits near 30
    z = F.linear(hidden, head.embedding).float()
    if head.adapter is not None:
        # in float32: compiled code may round a sum in bfloat16 for one of its readers and not for
        # another, and the probabilities would no longer add up to 1
        z = z + low_rank(hidden, head.adapter)[0].float()
    if head.sides is None:
        return head.softcap * torch.tanh(z / head.softcap)
    # one cap for each sign, so that likely and unlikely tokens saturate apart
    above, below = head.sides
    cap = torch.where(z > 0, above, below)
    return cap * torch.tanh(z / cap)


def head_nll(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Return the negative log-likelihood of targets [B, T], nats, float32.

    As one compiled function: caps and softmax read the product once, in the compute dtype.
    """
    return cross_entropy(head_logits(hidden, head), targets)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of targets [B, T] under logits [B, T, V], nats."""
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return nll.view(targets.shape)

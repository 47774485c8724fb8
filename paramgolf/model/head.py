"""The tied head: softcapped logits, and the negative log-likelihood of targets.

Of a token that cannot come (paramgolf.data.tokenizer.token_mask) the logit is IMPOSSIBLE, so that
it has no probability, and the other tokens' sum to one.

Shapes: B rows, T tokens, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from paramgolf.model.block import Lanes, Pair, low_rank
from paramgolf.model.operations import norm

NO_TARGET = -1
IMPOSSIBLE = -1e4  # e^-1e4 is 0, in float64 too; differences of it are numbers, unlike infinity's


class Mask(NamedTuple):
    """TokenMask (data.tokenizer.token_mask) on a device: its bits, and what may be literal."""

    words: Tensor  # int32 [V + 1, ceil(V / 32)]; of token v bit v % 32 of word v // 32
    escape: int
    marks: Tensor  # int64 [m]

    def states(self, tokens_BT: Tensor) -> Tensor:
        """Return the state after each token of rows that may begin anywhere, int64 [B, T]."""
        literal = torch.zeros_like(tokens_BT, dtype=torch.bool)
        literal[:, 1:] = tokens_BT[:, :-1] == self.escape
        literal[:, :1] = (tokens_BT[:, :1, None] == self.marks).any(-1)
        return tokens_BT.masked_fill(literal, len(self.words) - 1)


class Allowed(NamedTuple):
    """The tokens that can come at each position: those whose bits are 1 in its state."""

    words: Tensor  # of Mask
    states: Tensor  # int64 [B, T]


class Second(NamedTuple):
    """What training wants a position's logits to predict beside its target, and how much."""

    targets: Tensor  # int64 [B, T]; NO_TARGET where there is none
    weight: Tensor  # float32 scalar, of their loss; that of the target itself is 1


class Head(NamedTuple):
    """The weights of the head, in the compute dtype, and its caps."""

    embedding: Tensor  # [V, d]
    softcap: float
    sides: Tensor | None = None  # [2] float32: caps of positive and negative logits (pg#1923)
    adapter: Pair | None = None
    lane_merge: Tensor | None = None  # scalar: the first lane's share
    allowed: Allowed | None = None
    second: Second | None = None


def head_input(lanes: Lanes, head: Head) -> Tensor:
    """Return the last layer's lanes [B, T, d] joined to one, normalized."""
    if len(lanes) == 1:
        return norm(lanes[0])
    if head.lane_merge is not None:
        # m a + (1 - m) b
        return norm(torch.lerp(lanes[1], lanes[0], head.lane_merge))
    # as published; the norm undoes the half
    return norm((lanes[0] + lanes[1]) / 2)


def lanes_nll(
    lanes: Lanes, targets: Tensor, head: Head, nll: Callable[[Tensor, Tensor, Head], Tensor]
) -> Tensor:
    """Return what `nll`, which is `head_nll` or a fused form, says of the last layer's lanes."""
    return nll(head_input(lanes, head), targets, head)


def head_logits(hidden: Tensor, head: Head) -> Tensor:
    """Return cap * tanh(z / cap) of z = hidden [B, T, d] embedding^T, float32 [B, T, V]."""
    # the cap, and the exponentials of the loss, are float32: bfloat16 has 8 bits for logits near 30
    z = F.linear(hidden, head.embedding).float()
    if head.adapter is not None:
        # in float32: compiled code may round a sum in bfloat16 for one of its readers and not for
        # another, and the probabilities would no longer add up to 1
        z = z + low_rank(hidden, head.adapter)[0].float()
    return allow(_capped(z, head), head.allowed)


def _capped(z: Tensor, head: Head) -> Tensor:
    if head.sides is None:
        return head.softcap * torch.tanh(z / head.softcap)
    # one cap for each sign, so that likely and unlikely tokens saturate apart
    above, below = head.sides
    cap = torch.where(z > 0, above, below)
    return cap * torch.tanh(z / cap)


def allow(logits: Tensor, allowed: Allowed | None) -> Tensor:
    """Return logits [B, T, V] with IMPOSSIBLE for the tokens that cannot come."""
    if allowed is None:
        return logits
    words = allowed.words[allowed.states]
    bits = words[..., None] >> torch.arange(32, dtype=torch.int32, device=words.device) & 1
    return torch.where(bits.flatten(-2)[..., : logits.shape[-1]] > 0, logits, IMPOSSIBLE)


def head_nll(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Return the negative log-likelihood of targets [B, T], nats, float32.

    Its gradient is that of the sum with the second target's, times its weight; one that cannot come
    counts nothing. As one compiled function: caps and softmax read the product once, in the compute
    dtype.
    """
    logits = head_logits(hidden, head)
    nll = cross_entropy(logits, targets)
    if head.second is None:
        return nll
    second, weight = head.second
    token = second.clamp_min(0)
    counts = (second != NO_TARGET) & (logits.gather(-1, token[..., None])[..., 0] > IMPOSSIBLE)
    other = torch.where(counts, weight * cross_entropy(logits, token), 0.0)
    return nll + (other - other.detach())


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of targets [B, T] under logits [B, T, V], nats."""
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return nll.view(targets.shape)

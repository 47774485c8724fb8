"""Counts of what followed a context earlier in a text, for every position at once.

At position t the context is the c tokens before t, and only positions before t are counted: the
counts are those of a table that is read, then updated, token by token. Sorting makes them without
the loop. Contexts are told apart by a 64-bit hash, the tokens that follow exactly: two contexts
that collided would share one distribution, still a distribution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MULTIPLIER = -7046029254386353131  # odd: 2^64 / golden ratio, as a signed number


class Past(NamedTuple):
    """What a context has seen before each position, int64 [N].

    total: how often the context came; same: how often the token now at the position followed it;
    top, top_count: the token that followed it most often (the first to reach the count), and how
    often; top is -1 where total is 0.
    """

    total: Tensor
    same: Tensor
    top: Tensor
    top_count: Tensor


def past_counts(tokens: Tensor, context: int) -> Past:
    """Count, for each of `tokens` int64 [N], what followed the `context` tokens before it.

    The first `context` positions have no context: their counts are 0.
    """
    count = len(tokens)
    hashes = context_hashes(tokens, context)
    # group by context, in each group by token, in each of these by time
    by_token = torch.argsort(tokens, stable=True)
    pairs = by_token[torch.argsort(hashes[by_token], stable=True)]
    same = torch.empty_like(tokens)
    changed = _changes(hashes[pairs]) | _changes(tokens[pairs])
    same[pairs] = _places(changed)
    order = torch.argsort(hashes, stable=True)
    begins = _changes(hashes[order])
    total = _places(begins)
    top, top_count = _running_mode(tokens[order], same[order], begins, total)
    known = torch.arange(count, device=tokens.device) >= context
    result = []
    for column in (total, same[order], top, top_count):
        back = torch.empty_like(column)
        back[order] = column
        result.append(torch.where(known, back, 0))
    total, same, top, top_count = result
    return Past(total, same, torch.where(total > 0, top, -1), top_count)


def context_hashes(tokens: Tensor, context: int) -> Tensor:
    """Return a hash of the `context` tokens before each position, int64 [N]; it wraps around."""
    hashes = torch.zeros_like(tokens)
    for distance in range(context, 0, -1):
        before = torch.zeros_like(tokens)
        before[distance:] = tokens[:-distance] + 1
        hashes = (hashes ^ before) * MULTIPLIER
        hashes = hashes ^ (hashes >> 29)
    # positions whose context is cut off by the beginning must not look like any other's
    hashes[:context] = torch.arange(min(context, len(tokens)), device=tokens.device)
    return hashes


def _changes(x: Tensor) -> Tensor:
    """Tell for each element if it begins a run of equal ones, bool [N]."""
    changes = torch.ones_like(x, dtype=torch.bool)
    changes[1:] = x[1:] != x[:-1]
    return changes


def _places(begins: Tensor) -> Tensor:
    """Return the place of each element in its run, from 0, int64 [N]."""
    index = torch.arange(len(begins), device=begins.device)
    return index - torch.where(begins, index, 0).cummax(0).values


def _running_mode(
    tokens: Tensor, same: Tensor, begins: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the most frequent token of each run before each place, and its count, int64 [N].

    `same` is how often the token came in its run before, `total` the place in the run.
    """
    index = torch.arange(len(tokens), device=tokens.device)
    run = begins.cumsum(0) * (len(tokens) + 1)  # so that no run's counts reach the next one's
    highest = (run + same + 1).cummax(0).values
    reached = torch.where(_changes(highest), index, 0).cummax(0).values
    top, top_count = tokens[reached].roll(1), (highest - run).roll(1)
    return torch.where(total > 0, top, -1), torch.where(total > 0, top_count, 0)

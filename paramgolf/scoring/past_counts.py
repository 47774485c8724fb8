"""Counts of what followed a context earlier in a text, for every position at once.

At position t the context is the c tokens before t, and only positions before t are counted: the
counts are those of a table that is read, then updated, token by token. Sorting makes them without
the loop: positions with one context stand together, in the order of time, so that the index within
them is how often the context came before; sorted once more by the token that followed, the index is
how often that token followed it. Contexts are told apart by a 64-bit hash, the tokens that follow
exactly: two contexts that collided would share one distribution, still a distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TOKEN_BITS = 16
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


def past_counts(tokens: Tensor, context: int, begins_at: Sequence[int] = (0,)) -> Past:
    """Count, for each of `tokens` int64 [N], what followed the `context` tokens before it.

    Texts begin at the positions `begins_at`. The first `context` positions of each have no context:
    their counts are 0.
    """
    without = torch.zeros_like(tokens, dtype=torch.bool)
    for begin in begins_at:
        without[begin : begin + context] = True
    hashes = context_hashes(tokens, context)
    # all different, and never the hash of a context but by chance
    hashes[without] = torch.arange(int(without.sum()), device=tokens.device)
    # stable: within a context positions stay in the order of time
    hashes, order = torch.sort(hashes, stable=True)
    begins = _changes(hashes)
    # contexts that came once, most where they are long, have no past
    again = ~(begins & begins.roll(-1))
    order, begins = order[again], begins[again]
    total, ordered = _index_in_run(begins), tokens[order]
    # in each group of a context by token, in each of these by time
    keys, pairs = torch.sort((begins.cumsum(0) << TOKEN_BITS) | ordered, stable=True)
    followed = torch.empty_like(total)
    followed[pairs] = _index_in_run(_changes(keys))
    found = (total, followed, *_running_mode(ordered, followed, begins, total))
    columns = [torch.full_like(tokens, nothing) for nothing in (0, 0, -1, 0)]
    for column, values, nothing in zip(columns, found, (0, 0, -1, 0), strict=True):
        column[order] = values
        column[without] = nothing
    return Past(*columns)


def context_hashes(tokens: Tensor, context: int) -> Tensor:
    """Return a hash of the `context` tokens before each position, int64 [N]; it wraps around.

    Hashes of twice as many tokens are made of two. Before the first token stand zeros.
    """
    # as powers are computed by squaring: log2(context) steps, not one for each token
    result, done = torch.zeros_like(tokens), 0
    part, size = _before(tokens + 1, 1), 1
    while done < context:
        if context & size:
            result, done = _join(result, _before(part, done)), done + size
        part, size = _join(part, _before(part, size)), 2 * size
    return result


def _join(near: Tensor, far: Tensor) -> Tensor:
    """Return a hash of both [N]; `far` is overwritten."""
    # an odd factor is invertible modulo 2^64, so nothing is lost; the shift brings high bits down,
    # which products never do
    far.mul_(MULTIPLIER).bitwise_xor_(near).mul_(MULTIPLIER)
    return far.bitwise_xor_(far >> 29)


def _before(x: Tensor, distance: int) -> Tensor:
    """Return a copy of x [N] moved to the right, zeros first."""
    moved = torch.empty_like(x)
    moved[:distance] = 0
    moved[distance:] = x[: max(0, len(x) - distance)]
    return moved


def _changes(x: Tensor) -> Tensor:
    """Tell for each element if it begins a run of equal ones, bool [N]."""
    changes = torch.ones_like(x, dtype=torch.bool)
    changes[1:] = x[1:] != x[:-1]
    return changes


def _index_in_run(begins: Tensor) -> Tensor:
    """Return the index of each element in its run, from 0, int64 [N]."""
    index = torch.arange(len(begins), device=begins.device)
    return index - torch.where(begins, index, 0).cummax(0).values


def _running_mode(
    tokens: Tensor, same: Tensor, begins: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the most frequent token of each run before each element, and its count, int64 [N].

    `same` is how often the token came in its run before, `total` its index in the run.
    """
    # the highest count so far rises by one whenever a token reaches it, and that token leads; the
    # running maximum of all runs is one cummax, as a run's counts are shifted above the last one's
    index = torch.arange(len(tokens), device=tokens.device)
    run = begins.cumsum(0) * (len(tokens) + 1)
    highest = (run + same + 1).cummax(0).values
    leader = torch.where(_changes(highest), index, 0).cummax(0).values
    # by one position later: before an element, not with it
    top, top_count = tokens[leader].roll(1), (highest - run).roll(1)
    return torch.where(total > 0, top, -1), torch.where(total > 0, top_count, 0)

"""What is mixed into the network's distribution: counts of the text already scored.

All forms are distributions over the whole vocabulary that are fixed before the target is looked
at, so their probabilities sum to 1:

    ngram  (1 - w) p(v) + w count(v) / total of the longest context that is known, w a constant.
           p and the counts each sum to 1, and so does what is between them. In pg#1499 w depends on
           p(target), and the sum over all targets reached 1.106: that is no distribution.
    blend  the same for each known context in turn, from the shortest, upon what the shorter ones
           have made of p: w / (1 - w) = weight c^2 total / (misses + 1/2) for a context of c tokens
           that came `total` times, `misses` times before another than its most frequent follower.
    tilt   p(v) e^(beta [v = h]) / (1 + p(h) (e^beta - 1)) (pg#1437, pg#2135): the hint h is made
           likelier by e^beta, and the divisor is the new sum, since all but p(h) stay as they were.

Counts see the text in scoring order only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paramgolf.scoring.config import MixtureConfig
from paramgolf.scoring.ledger import Ledger
from paramgolf.scoring.past_counts import Past, past_counts
from paramgolf.scoring.text import Text


@dataclass(frozen=True, slots=True)
class Mixture:
    """What the past says of each target, padded with targets for which it says nothing.

    left, said: float32 [N + padding], the logarithm of the share that is the network's (0 where no
    context is known), and what the n-grams give to the target, their share in it. hint: int64
    [N + padding], the token that `beta` favors, or -1.
    """

    left: Tensor | None = None
    said: Tensor | None = None
    hint: Tensor | None = None
    beta: float = 0.0

    def mixed(self, nats: Tensor, said: Tensor, index: Tensor) -> Tensor:
        """Return the `nats` of tokens mixed with what the n-grams have `said` of these.

        `index` holds the numbers of the targets; the shapes broadcast.
        """
        assert self.left is not None
        # by logarithms: after many repetitions less than a float32's last place is the network's
        return -torch.logaddexp(self.left[index] - nats, torch.log(said))

    def hinted(self, index: Tensor) -> Tensor:
        """Return the hint of each target of `index`, any token where there is none."""
        assert self.hint is not None
        return self.hint[index].clamp(min=0)

    def tilted(self, nats: Tensor, of_hint: Tensor, tokens: Tensor, index: Tensor) -> Tensor:
        """Return the nats of `tokens` under p(v) e^(beta [v = hint]) / (1 + p(hint) (e^beta - 1)).

        `nats` are the network's of the tokens, `of_hint` those of the hint; `index` counts the
        targets; the shapes broadcast.
        """
        assert self.hint is not None
        hint = self.hint[index]
        # log1p and expm1: where p(hint) is small the divisor is 1 + something tiny
        total = torch.log1p(torch.exp(-of_hint) * math.expm1(self.beta))
        return torch.where(hint >= 0, nats - self.beta * (tokens == hint) + total, nats)


def build_mixture(
    text: Text,
    config: MixtureConfig,
    ledger: Ledger,
    *,
    order: np.ndarray | None = None,
    padding: int,
    device: torch.device,
) -> Mixture:
    """Count the text in the order in which it is scored: that of the text, or `order` [N].

    A target's entry depends only on what was scored before it, and the ledger is told the order.
    `kind` must not be none.
    """
    order = np.arange(len(text)) if order is None else order
    ledger.follow(order)
    stream, primed = counted_stream(text, order)
    tokens = torch.from_numpy(stream).to(device)

    def past(context: int) -> Past:
        counts = past_counts(tokens, context, begins_at=(0, primed))
        return Past(*(column[primed + 1 :] for column in counts))

    targets = torch.from_numpy(order).to(device)

    # from the order of scoring to the order of the text, in which batches number their targets
    def column(values: Tensor, nothing: float) -> Tensor:
        padded = values.new_full((len(order) + padding,), nothing)
        padded[targets] = values
        return padded

    if config.kind == "blend":
        left, said = _blended(past, config)
    else:
        left, said, hint = _backed_off(past, config)
        if config.kind == "tilt":
            return Mixture(hint=column(hint, -1), beta=config.beta)
    return Mixture(left=column(left, 0), said=column(said, 0))


def _backed_off(
    past: Callable[[int], Past], config: MixtureConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Return left, said and hint [N] of the longest context that is known."""
    longest, *shorter = sorted(config.contexts, reverse=True)
    counts = past(longest)
    # whether a context is known must not depend on the target, so `total` decides, not `same`
    known = counts.total >= config.min_count
    for context in shorter:
        # a shorter context only where none was known yet
        more = past(context)
        counts = Past(*(torch.where(known, x, y) for x, y in zip(counts, more, strict=True)))
        known = counts.total >= config.min_count
    weight = config.weight * known
    said = weight * counts.same / counts.total.clamp(min=1)
    # of tokens with equal counts the first to reach that count is the hint, so that the choice
    # depends on the past alone
    sure = known & (counts.top_count >= config.min_share * counts.total)
    return torch.log1p(-weight), said, torch.where(sure, counts.top, -1)


def _blended(past: Callable[[int], Past], config: MixtureConfig) -> tuple[Tensor, Tensor]:
    """Return left and said [N] of all contexts together."""
    left, said = torch.zeros(2)
    for context in sorted(config.contexts):
        counts = past(context)
        misses = counts.total - counts.top_count
        # a longer one, and one that was rarely followed by something else, is more likely right
        odds = config.weight * context**2 * counts.total / (misses + 0.5)
        odds = torch.where(counts.total >= config.min_count, odds, 0)
        # what this context says goes over what shorter ones have said, and over the network
        said = (said + odds * counts.same / counts.total.clamp(min=1)) / (1 + odds)
        left = left - torch.log1p(odds)
    return left, said


def counted_stream(text: Text, order: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the tokens that are counted, int64 [P + 1 + N], and P.

    The primer's P tokens come first, then the text's first token, which is context and never a
    target, then the targets in their order.
    """
    parts = (text.primer, text.tokens[:1], text.tokens[1:][order])
    return np.concatenate(parts).astype(np.int64), len(text.primer)

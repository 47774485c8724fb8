"""Test a few passes of an evaluation while it runs, for rules R6 (causal) and R7 (normalized).

A pass is tested before it is scored, with the weights that score it. A token in the middle of its
last targets is changed: no earlier prediction may change. For some targets the whole distribution
is computed, mixture included: it must sum to 1, and give the target the score that the evaluation
enters. The n-gram model is counted again here, token by token, since the code that computes the
scores cannot reveal its own faults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paramgolf.data.special_tokens import BOS
from paramgolf.runtime import Runtime
from paramgolf.scoring.config import MixtureConfig
from paramgolf.scoring.mixture import counted_stream
from paramgolf.scoring.scorer import Scorer, ScoringBatch

PROBED = 8  # passes of an evaluation, beside its first
AFTER = 2  # passes into an item comes the one that is probed: adapters have learned by then
LAST = 32  # targets of a row that are looked at, at most
TARGETS = 16  # distributions of a pass


class Probe:
    """Counts passes, probes some, and keeps the largest errors.

    found: passes and positions probed; causal_error, how far a logit moved with a later token;
    sum_error, how far the probabilities are from 1 in sum; score_error, the mean distance between
    a score and its distribution, nats.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {
            "passes": 0,
            "positions": 0,
            "causal_error": 0.0,
            "sum_error": 0.0,
            "score_error": 0.0,
        }
        self._countdown = 1  # there may be no second one
        self._done = 0

    def plan(self, done: int, total: int) -> None:
        """Have a pass of the next item probed, if enough were not; `done` may skip some."""
        if self._countdown <= 0 and done * PROBED // total > self._done * PROBED // total:
            self._countdown = AFTER
        self._done = done

    def over(self, runtime: Runtime) -> dict[str, Any]:
        """Return what the probes of all processes have found; all call it."""
        of_each = runtime.gather(self.found)
        positions = sum(one["positions"] for one in of_each)
        errors = sum(one["score_error"] * one["positions"] for one in of_each)
        return {
            **{key: max(one[key] for one in of_each) for key in ("causal_error", "sum_error")},
            "passes": sum(one["passes"] for one in of_each),
            "positions": positions,
            "score_error": errors / max(1, positions),
        }

    def __call__(self, scorer: Scorer, batch: ScoringBatch) -> Callable[[Tensor], None] | None:
        """Probe the batch if it is its turn; what is returned must see its scores."""
        self._countdown -= 1
        if self._countdown != 0:
            return None
        if not self.found["passes"]:
            self._countdown = AFTER - 1  # the first pass, and the one that is due in its item
        assert isinstance(batch.part, slice)
        scored = range(batch.inputs.shape[1])[batch.part][-LAST:]
        # if few targets are scored, also look at the predictions before them
        here = slice(max(0, scored.stop - LAST), scored.stop)
        logits = scorer.witness.logits(batch.inputs, batch.options, part=here).detach()
        self._move(scorer, batch, here, logits)
        part = slice(scored.start, scored.stop)
        return self._compare(scorer, batch._replace(part=part), logits[:, -len(scored) :])

    def _move(self, scorer: Scorer, batch: ScoringBatch, here: slice, logits: Tensor) -> None:
        """Change a token and see what moves before it."""
        half = logits.shape[1] // 2
        inputs = batch.inputs.clone()
        token = inputs[:, here.start + half]
        # a document that began or ended elsewhere would share its row with other text
        other = 2 + (token - 1) % (scorer.network.vocab_size - 2)
        inputs[:, here.start + half] = torch.where(token == BOS, token, other)
        moved = scorer.witness.logits(inputs, batch.options, part=here).detach()
        if half:
            error = (moved - logits)[:, :half].abs().max()
            self.found["causal_error"] = max(self.found["causal_error"], float(error))

    def _compare(
        self, scorer: Scorer, batch: ScoringBatch, logits: Tensor
    ) -> Callable[[Tensor], None]:
        """Make some targets' distributions; return what compares them with the scores."""
        index = batch.numbers
        inside = (index < len(scorer.text)).nonzero()
        liked = interest(scorer, index)[tuple(inside.T)].argsort(descending=True, stable=True)
        chosen = inside[liked]
        rows, columns = chosen[:TARGETS].T
        targets = index[rows, columns]
        # float64, from the logits: another way to the score than the loss that gave it
        nats = distributions(scorer, targets, logits[rows, columns])
        self.found["passes"] += 1
        if not len(targets):
            return lambda _: None
        error = float((nats.neg().exp().sum(1) - 1).abs().max())
        self.found["sum_error"] = max(self.found["sum_error"], error)
        tokens = batch.targets[:, batch.part][rows, columns]
        expected = nats.gather(1, tokens[:, None])[:, 0]

        def compare(scores: Tensor) -> None:
            given = scores[:, scores.shape[1] - index.shape[1] :][rows, columns]
            before, new = self.found["positions"], len(expected)
            gap = float((given - expected).abs().mean())
            mean = (self.found["score_error"] * before + gap * new) / (before + new)
            self.found |= {"positions": before + new, "score_error": mean}

        return compare


def interest(scorer: Scorer, index: Tensor) -> Tensor:
    """Tell for each target if something is mixed into its distribution, int64 [B, k]."""
    mixture = scorer.mixture
    if mixture is None:
        return torch.zeros_like(index)
    if mixture.hint is not None:
        return (mixture.hint[index] >= 0).long()
    assert mixture.left is not None
    return (mixture.left[index] < 0).long()


def distributions(scorer: Scorer, targets: Tensor, logits: Tensor) -> Tensor:
    """Return -ln p of every token at each of `targets` [n], float64 [n, V]; `logits` [n, V]."""
    nats = -(logits.double() / scorer.temperature).log_softmax(-1)
    mixture, index = scorer.mixture, targets[:, None]
    if mixture is None:
        return nats
    if mixture.hint is not None:
        tokens = torch.arange(nats.shape[1], device=nats.device)
        of_hint = nats.gather(1, mixture.hinted(index))
        return mixture.tilted(nats, of_hint, tokens[None], index)
    assert scorer.mixing is not None
    order = np.arange(len(scorer.text)) if scorer.order is None else scorer.order
    stream, primed = counted_stream(scorer.text, order)
    places = [int(np.flatnonzero(order == target)[0]) for target in targets.tolist()]
    counts = [
        count_followers(stream, primed, primed + 1 + place, scorer.mixing, nats.shape[1])
        for place in places
    ]
    said = torch.from_numpy(np.reshape(counts, nats.shape)).to(nats)
    return mixture.mixed(nats, said, index)


def count_followers(
    tokens: np.ndarray, primed: int, at: int, mixing: MixtureConfig, vocab_size: int
) -> np.ndarray:
    """Return what n-grams say of every token at position `at`, float64 [V], counted through.

    `tokens` and `primed` are as `counted_stream` returns them.
    """
    found = np.zeros(vocab_size)
    ends = 1 + np.flatnonzero(tokens[: at - 1] == tokens[at - 1])
    # no context reaches from the text into what was counted before it, or beyond its beginning
    for distance in range(1, min(max(mixing.contexts), at - primed) + 1):
        ends = ends[(ends >= primed + distance) | ((ends >= distance) & (ends < primed))]
        ends = ends[tokens[ends - distance] == tokens[at - distance]]
        if distance not in mixing.contexts or len(ends) < mixing.min_count:
            continue
        said = np.bincount(tokens[ends], minlength=vocab_size) / len(ends)
        if mixing.kind == "blend":
            misses = len(ends) * (1 - said.max())
            odds = mixing.weight * distance**2 * len(ends) / (misses + 0.5)
            found = (found + odds * said) / (1 + odds)
        else:  # of the longest context alone
            found = mixing.weight * said
    return found

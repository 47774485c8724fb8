"""The ledger of an evaluation: the only place where scores are kept, and it refuses illegal ones.

Every score of a target and every update of the weights is entered here, in the order in which they
happen. A target is scored once, before any update that learns from it; at the end each target has
been scored. What the ledger refuses never reaches the result, because the result is read from it:
an evaluator that scores a chunk again after it has learned from it, or keeps the better of two
scores (both were found in submissions), cannot report what it computed.

Scores are entered where they are computed, target by target, and updates in the order in which the
device makes them. A refused update ends the evaluation; where passes are launched ahead
(lora_documents), the weights in memory may have made it by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch

from paramgolf.errors import ParamGolfError
from paramgolf.runtime import Runtime

ROUNDING_NATS = 1e-3  # how far below 0 a score may lie: cross entropy in float32 rounds
REPLAYED = 1024  # updates checked at a time


class LedgerError(ParamGolfError):
    """An evaluation tried what the rules forbid."""


@dataclass(frozen=True, slots=True)
class Update:
    """One update of the weights: the last entry of scores before it, and what it learned from.

    `start` and `stop` are int64 [n]: the targets start[i]..stop[i]. An `own` update is this
    process's alone; the others were made by all processes alike.
    """

    entry: int
    start: np.ndarray
    stop: np.ndarray
    own: bool = False


class Ledger:
    """Scores of `count` targets, and the order in which they and the updates came.

    Attributes:
        nats: float64 [count], the score of each target; 0 where none is entered yet.
        entry: int32 [count], the number of the entry that scored the target, from 1; 0 is none.
        weights: for each entry, how many updates its weights had seen.
        updates: the updates, in order.
        merged: entries and updates that the last merge told the others.
        elsewhere: what they entered.

    Processes that score different targets each keep a ledger, and merge() them.
    """

    def __init__(self, count: int) -> None:
        self.nats = np.zeros(count)
        self.entry = np.zeros(count, dtype=np.int32)
        self.weights = [0]
        self.updates: list[Update] = []
        self._rank: np.ndarray | None = None
        self.merged = (0, 0)
        self.elsewhere = Elsewhere(np.zeros(count, dtype=bool))

    def score(self, start: int, nats: np.ndarray, times: np.ndarray) -> None:
        """Enter scores that the present weights gave to the targets from `start` on.

        `nats` and `times` [n]: the sum of the scores that a target was given, and how many there
        were (0 or 1, or else a LedgerError). A target scored in an earlier entry, and a score that
        no probability can have, are LedgerErrors too.
        """
        self._inside(np.array([start]), np.array([start + len(nats)]))
        # windows that overlap by mistake show here: their scores were added up
        if times.max(initial=0) > 1:
            _refuse("a target is scored a second time", start + np.flatnonzero(times > 1))
        if times.min(initial=1) > 0:  # the ordinary case; a slice copies nothing
            self._enter(slice(start, start + len(nats)), nats)
        else:
            new = np.flatnonzero(times)
            self._enter(start + new, nats[new])

    def score_at(self, targets: np.ndarray, nats: np.ndarray) -> None:
        """Enter scores [n] that the present weights gave to `targets` [n], in any order."""
        self._inside(targets, targets + 1)
        # assigning to a target twice would keep the last score without a word
        once, times = np.unique(targets, return_counts=True)
        if len(once) < len(targets):
            _refuse("a target is scored a second time", once[times > 1])
        self._enter(targets, nats)

    def _enter(self, targets: np.ndarray | slice, nats: np.ndarray) -> None:
        if self.entry[targets].max(initial=0) > 0:
            known = self.entry[targets] > 0
            _refuse("a target is scored a second time", np.arange(len(self.entry))[targets][known])
        # the extremes are NaN where a score is, and no comparison with it holds
        if not (nats.min(initial=0) > -ROUNDING_NATS and nats.max(initial=0) < np.inf):
            fix = "lower the rate of eval_ttt if adaptation diverged; else the weights are damaged"
            impossible = ~((nats > -ROUNDING_NATS) & np.isfinite(nats))
            found = _describe(np.arange(len(self.entry))[targets][impossible])
            raise LedgerError("a score is not the -ln of a probability", found=found, fix=fix)
        # what gave these scores: the weights after so many updates
        self.weights.append(len(self.updates))
        self.nats[targets] = nats
        self.entry[targets] = len(self.weights) - 1

    def update(self, start: np.ndarray, stop: np.ndarray, *, own: bool = False) -> None:
        """Enter an update of the weights that learns from the targets start[i]..stop[i].

        It comes after the scores that the device has computed by then; a target without one is a
        LedgerError. With `own` only this process makes the update, on weights that are its own.
        """
        self._inside(start, stop)
        targets = expand_ranges(start, stop)
        unscored = targets[self.entry[targets] == 0]
        if len(unscored):
            _refuse("an update would learn from targets not scored yet", unscored)
        self.updates.append(Update(len(self.weights) - 1, start, stop, own))

    def follow(self, order: np.ndarray) -> None:
        """Declare that what is mixed in sees the targets in `order`, a permutation, int64 [count].

        Then no target may be scored by weights that learned from one after it: close() refuses
        hints that do not follow the order of the scores.
        """
        self._rank = np.empty(len(order), dtype=np.int64)
        self._rank[order] = np.arange(len(order))

    def merge(self, runtime: Runtime) -> None:
        """Exchange what each process scored and learned by itself since the last merge.

        All processes call it together; then all hold the same scores. A target that two of them
        scored is a LedgerError: sums of their scores and counts show it.
        """
        entries, updates = self.merged
        mine = self.entry > entries
        own = [update for update in self.updates[updates:] if update.own]
        # the others cannot replay what was learned here, so they are told what came of it
        trained, score_first = self._replay(own)
        # each target is one process's, so that sums are exchanges, and a count of 2 is a fault
        rows = np.stack([np.where(mine, self.nats, 0.0), mine, trained])
        nats, times, learned = runtime.sum(torch.from_numpy(rows).to(runtime.device)).cpu().numpy()
        if (times > 1).any():
            _refuse("a target is scored a second time", np.flatnonzero(times > 1))
        new = len(self.weights) - 1 - entries
        figures = torch.tensor([new, len(own), not score_first], dtype=torch.float64)
        total = runtime.sum(figures.to(runtime.device)).tolist()
        # what the others scored is one entry here: it came before all that follows, on all of them
        others = np.flatnonzero((times == 1) & ~mine)
        if len(others):
            self._enter(others, nats[others])
        self.elsewhere.trained |= learned > 0
        self.elsewhere.entries += int(total[0]) - new - (len(others) > 0)
        self.elsewhere.updates += int(total[1]) - len(own)
        self.elsewhere.score_first &= total[2] == 0
        self.merged = (len(self.weights) - 1, len(self.updates))

    def close(self) -> dict[str, bool | int]:
        """Return the verdict for the metrics, derived once more from the record itself.

        A target without a score is a LedgerError: no tail may be dropped.
        """
        missing = np.flatnonzero(self.entry == 0)
        if len(missing):
            _refuse("targets were never scored", missing)
        if self._rank is not None:
            self._check_order(self._rank)
        trained, score_first = self._replay(self.updates)
        elsewhere = self.elsewhere
        return {
            "scored_once": True,
            "score_first": score_first and elsewhere.score_first,
            "targets": len(self.entry),
            "entries": len(self.weights) - 1 + elsewhere.entries,
            "updates": len(self.updates) + elsewhere.updates,
            "targets_trained": int((trained | elsewhere.trained).sum()),
        }

    def state(self) -> dict[str, Any]:
        """Return all but the order to follow, which the mixture sets again on resuming."""
        # the ranges of all updates in two arrays: an evaluation has some hundred thousand updates
        none = np.zeros(0, dtype=np.int64)
        starts = np.concatenate([none, *(u.start for u in self.updates)])
        stops = np.concatenate([none, *(u.stop for u in self.updates)])
        elsewhere = self.elsewhere
        return {
            "nats": torch.from_numpy(self.nats),
            "entry": torch.from_numpy(self.entry),
            "weights": self.weights,
            "updates": [(u.entry, len(u.start), u.own) for u in self.updates],
            "starts": torch.from_numpy(starts),
            "stops": torch.from_numpy(stops),
            "merged": self.merged,
            "trained": torch.from_numpy(elsewhere.trained),
            "elsewhere": (elsewhere.entries, elsewhere.updates, elsewhere.score_first),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Enter in an empty ledger what `state` returned."""
        self.nats[:], self.entry[:] = state["nats"].numpy(), state["entry"].numpy()
        self.weights, self.merged = list(state["weights"]), tuple(state["merged"])
        ends = np.cumsum([length for _, length, _ in state["updates"]])
        starts, stops = (np.split(state[key].numpy(), ends) for key in ("starts", "stops"))
        self.updates = [
            Update(entry, starts[i], stops[i], own)
            for i, (entry, _, own) in enumerate(state["updates"])
        ]
        self.elsewhere = Elsewhere(state["trained"].numpy(), *state["elsewhere"])

    def _check_order(self, rank: np.ndarray) -> None:
        """Refuse hints for targets that come, in their order, before what the weights learned.

        `rank` tells where each target comes in the order. A hint says what followed the target's
        context earlier in the order. If weights had learned from targets later in it, hint and
        weights together would know more of the text than any single order of reading allows.
        Updates of one process's own do not count: what they learn stays in their document or, with
        warm_a, goes to later batches of the plan, which come later in the order as well.
        """
        # first[e]: the least rank of the targets that are scored in entry e or later
        first = np.full(len(self.weights) + 1, len(rank))
        np.minimum.at(first, self.entry, rank)
        first = np.minimum.accumulate(first[::-1])[::-1]
        for update in self.updates:
            if update.own:
                continue
            learned = expand_ranges(update.start, update.stop)
            ahead = learned[rank[learned] > first[update.entry + 1]]
            if len(ahead):
                _refuse("hints come from text that is not scored yet, in their order", ahead)

    def _replay(self, updates: Sequence[Update]) -> tuple[np.ndarray, bool]:
        """Return the targets that `updates` learned from, bool [count], and if all had scores.

        An update's targets must have been scored by the entry that was the last one before it.
        """
        trained = np.zeros(len(self.entry), dtype=bool)
        score_first = True
        for begin in range(0, len(updates), REPLAYED):
            some = updates[begin : begin + REPLAYED]
            start, stop = (np.concatenate([getattr(u, x) for u in some]) for x in ("start", "stop"))
            # entry 0 is "no score": an unscored target would pass, but close() refuses it before
            entries = np.repeat([u.entry for u in some], [len(u.start) for u in some])
            targets = expand_ranges(start, stop)
            score_first &= bool((self.entry[targets] <= np.repeat(entries, stop - start)).all())
            trained[targets] = True
        return trained, score_first

    def _inside(self, start: np.ndarray, stop: np.ndarray) -> None:
        wrong = np.flatnonzero(~((start >= 0) & (start <= stop) & (stop <= len(self.entry))))
        if len(wrong):
            raise LedgerError(
                "the ledger refuses targets outside of the text",
                expected=f"targets 0..{len(self.entry)}",
                found=f"{start[wrong[0]]}..{stop[wrong[0]]}",
            )


@dataclass(slots=True)
class Elsewhere:
    """What the other processes entered, as far as the verdict needs it."""

    trained: np.ndarray
    entries: int = 0
    updates: int = 0
    score_first: bool = True


def expand_ranges(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Return the members of the ranges start[i]..stop[i] one after another, int64."""
    lengths = stop - start
    before = np.cumsum(lengths) - lengths
    return np.repeat(start - before, lengths) + np.arange(lengths.sum())


def find_ranges(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return start and stop of the runs of successive numbers in `targets` [n], at least one."""
    breaks = np.flatnonzero(np.diff(targets) != 1)
    return targets[np.r_[0, breaks + 1]], targets[np.r_[breaks, len(targets) - 1]] + 1


def _refuse(what: str, targets: np.ndarray) -> NoReturn:
    expected = "each target scored exactly once, before any update that learns from it"
    raise LedgerError(f"the ledger refuses: {what}", expected=expected, found=_describe(targets))


def _describe(targets: np.ndarray) -> str:
    return f"{len(targets)} targets, the first {targets[0]}, the last {targets[-1]}"

"""The ledger of an evaluation: the only place where scores are kept, and it refuses illegal ones.

Every score of a target and every update of the weights is entered here, in the order in which they
happen. A target is scored once, before any update that learns from it; at the end each target has
been scored. What the ledger refuses never reaches the result, because the result is read from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from paramgolf.errors import ParamGolfError

ROUNDING_NATS = 1e-3  # how far below 0 a score may lie: cross entropy in float32 rounds


class LedgerError(ParamGolfError):
    """An evaluation tried what the rules forbid."""


@dataclass(frozen=True, slots=True)
class Update:
    """One update of the weights: the last entry of scores before it, and what it learned from.

    `start` and `stop` are int64 [n]: the targets start[i]..stop[i].
    """

    entry: int
    start: np.ndarray
    stop: np.ndarray


class Ledger:
    """Scores of `count` targets, and the order in which they and the updates came.

    Attributes:
        nats: float64 [count], the score of each target; 0 where none is entered yet.
        entry: int32 [count], the number of the entry that scored the target, from 1; 0 is none.
        weights: the version of the weights behind each entry, a version an update.
        updates: the updates, in order.
    """

    def __init__(self, count: int) -> None:
        self.nats = np.zeros(count)
        self.entry = np.zeros(count, dtype=np.int32)
        self.weights = [0]
        self.updates: list[Update] = []

    def score(self, start: int, nats: np.ndarray, times: np.ndarray) -> None:
        """Enter scores that the present weights gave to the targets from `start` on.

        `nats` and `times` [n]: the sum of the scores that a target was given, and how many there
        were (0 or 1, or else a LedgerError). A target scored in an earlier entry, and a score that
        no probability can have, are LedgerErrors too.
        """
        stop = start + len(nats)
        self._inside(start, stop)
        twice = np.flatnonzero(times + (self.entry[start:stop] > 0) > 1)
        if len(twice):
            _refuse("a target is scored a second time", start + twice)
        new = times > 0
        impossible = np.flatnonzero(new & ~((nats > -ROUNDING_NATS) & np.isfinite(nats)))
        if len(impossible):
            fix = "lower eval_ttt.lr if adaptation diverged; else the weights are damaged"
            found = _describe(start + impossible)
            raise LedgerError("a score is not the -ln of a probability", found=found, fix=fix)
        self.weights.append(len(self.updates))
        self.nats[start:stop][new] = nats[new]
        self.entry[start:stop][new] = len(self.weights) - 1

    def update(self, start: np.ndarray, stop: np.ndarray) -> None:
        """Enter an update of the weights that learns from the targets start[i]..stop[i].

        To be called before the optimiser's step; a target without a score is a LedgerError.
        """
        for begin, end in zip(start.tolist(), stop.tolist(), strict=True):
            self._inside(begin, end)
            unscored = np.flatnonzero(self.entry[begin:end] == 0)
            if len(unscored):
                _refuse("an update would learn from targets not scored yet", begin + unscored)
        self.updates.append(Update(len(self.weights) - 1, start, stop))

    def close(self) -> dict[str, bool | int]:
        """Return the verdict for the metrics, derived once more from the record itself.

        A target without a score is a LedgerError: no tail may be dropped.
        """
        missing = np.flatnonzero(self.entry == 0)
        if len(missing):
            _refuse("targets were never scored", missing)
        trained = np.zeros(len(self.entry), dtype=bool)
        score_first = True
        for update in self.updates:
            for begin, end in zip(update.start.tolist(), update.stop.tolist(), strict=True):
                score_first &= bool((self.entry[begin:end] <= update.entry).all())
                trained[begin:end] = True
        return {
            "scored_once": True,
            "score_first": score_first,
            "targets": len(self.entry),
            "entries": len(self.weights) - 1,
            "updates": len(self.updates),
            "targets_trained": int(trained.sum()),
        }

    def weights_version(self) -> np.ndarray:
        """Return for each target how many updates its weights had seen, int64 [count]."""
        return np.asarray(self.weights)[self.entry]

    def _inside(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= len(self.entry):
            raise LedgerError(
                "the ledger refuses targets outside of the text",
                expected=f"targets 0..{len(self.entry)}",
                found=f"{start}..{stop}",
            )


def _refuse(what: str, targets: np.ndarray) -> NoReturn:
    expected = "each target scored exactly once, before any update that learns from it"
    raise LedgerError(f"the ledger refuses: {what}", expected=expected, found=_describe(targets))


def _describe(targets: np.ndarray) -> str:
    return f"{len(targets)} targets, the first {targets[0]}, the last {targets[-1]}"

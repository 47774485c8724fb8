"""Whether an evaluation will end within its seconds, from the speed of its beginning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.scoring.document_plan import DocumentBatch, Phase, work
from paramgolf.scoring.windows import ScoringWindows

SHARE = 0.02  # of the work, after which the speed is known well enough to speak


class Forecast:
    """Projects the seconds of an evaluation in all; speaks first, and when its verdict changes.

    `work` is that of each item, in any unit. The speed is counted from the first look on: what was
    done until then was done before a crash, or was slow, as the first part of a run is.
    """

    def __init__(self, limit: float, work: Sequence[float]) -> None:
        self._limit = limit
        self._after = np.cumsum([0.0, *work])
        self._begin: tuple[int, float] | None = None
        self._fits: bool | None = None

    def look(self, done: int, seconds: float) -> str | None:
        """Return what is to be said when `done` items are done after `seconds` in all."""
        before, begin = self._begin = self._begin or (done, seconds)
        whole, new = self._after[-1], self._after[done] - self._after[before]
        if done == len(self._after) - 1 or new < SHARE * whole:
            return None
        rest = (whole - self._after[done]) * (seconds - begin) / new
        fits = bool(seconds + rest <= self._limit)
        if fits == self._fits:
            return None
        self._fits = fits
        verdict = "within" if fits else "NOT within"
        share = self._after[done] / whole
        return (
            f"{share:.0%} done after {seconds:.0f} s; at this speed {seconds + rest:.0f} s in all, "
            f"{verdict} the {self._limit:.0f} s of verify.eval_seconds"
        )


def work_of(
    item: ScoringWindows | DocumentBatch | Phase, config: SlidingConfig | TttConfig
) -> float:
    """Return what an item of an evaluation costs, as against its others.

    That is its windows; of documents the tokens that are read, or learned from.
    """
    if isinstance(item, DocumentBatch):
        return work(item, config.window)
    if isinstance(item, ScoringWindows):
        return len(item)
    assert isinstance(config, TttConfig)
    return float((item.stop - item.start).sum() * config.epochs)

"""Which run a GPU takes next: what has begun first, then seed by seed, variants in turn.

But the last trainings, one a GPU, go before what has begun: they are the longest pieces of work,
and if they were left for the end, some GPUs would wait for others.

Seeds are paired: all variants of one before those of the next, in alternating order (the first to
the last, then back), so that a machine that grows hot or slow is nobody's disadvantage. GPUs of one
machine differ by two percent, so each GPU has each variant as often as the others, where it can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from scipy.optimize import linear_sum_assignment

from paramgolf.experiments.lab.records import Run


def ordered(variants: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int, int]]:
    """Return (variant, seed, replicate) of all runs in their order."""
    again: Counter[int] = Counter()
    runs = []
    for turn, seed in enumerate(seeds):
        names = reversed(variants) if turn % 2 else variants
        runs += [(name, seed, again[seed]) for name in names]
        again[seed] += 1
    return runs


@dataclass(slots=True)
class Job:
    """A run on its way: the stages that are left to run."""

    run: Run
    round: int
    left: list[str]
    begun: bool = False
    busy: bool = False
    slot: str | None = None
    """That it began on."""

    @property
    def next_key(self) -> str:
        """The key of the stage that comes next."""
        return self.run.keys[self.left[0]]


@dataclass(slots=True)
class Schedule:
    """Jobs in order, and how often each slot (a GPU, or several) had each variant."""

    jobs: list[Job]
    slots: Sequence[str]
    had: Counter[tuple[str, str]] = field(default_factory=Counter)

    def take(self, slot: str, running: Collection[str]) -> Job | None:
        """Return the job that a free slot does next, None where none is ready.

        A job waits while another runs the very stage that it needs next; the keys of those are
        `running`.
        """
        ready = [j for j in self.jobs if j.left and not j.busy and j.next_key not in running]
        begun, new = ([j for j in ready if j.begun is one] for one in (True, False))
        if begun and not 0 < len(new) <= len(self.slots):
            return begun[0]
        if not new:
            return None
        first = min(job.round for job in new)
        chosen = self._fairest(slot, [job for job in new if job.round == first])
        chosen.slot = slot
        self.had[slot, chosen.run.variant] += 1
        return chosen

    def _fairest(self, slot: str, jobs: Sequence[Job]) -> Job:
        """Return the job of a round that leaves the other slots, too, what they had least."""
        served = {job.slot for job in self.jobs if job.round == jobs[0].round}
        others = [other for other in self.slots if other != slot and other not in served]
        times = [[self.had[one, job.run.variant] for job in jobs] for one in (slot, *others)]
        rows, columns = linear_sum_assignment(times)
        chosen = dict(zip(rows, columns, strict=True))
        if 0 in chosen:
            return jobs[chosen[0]]
        return min(jobs, key=lambda job: self.had[slot, job.run.variant])

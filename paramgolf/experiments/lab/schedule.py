"""Which run a GPU takes next: first runs that have begun, then new ones, seed by seed.

The last trainings, one per GPU, are an exception: they start before runs that have begun are
continued. Training is the longest stage, and at the very end some GPUs would wait for others.

All variants of one seed run before those of the next, in alternating order (first to last, then
back), so that a machine that gets hot or slow puts no variant at a disadvantage. GPUs of one
machine differ by two percent, so each variant runs equally often on each GPU, as far as possible.
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
        """Return the job of a round to run on `slot`, so that every slot gets what it had least.

        The jobs are assigned to this slot and to those that have none of this round yet, with the
        least total of how often each slot had each variant.
        """
        served = {job.slot for job in self.jobs if job.round == jobs[0].round}
        others = [other for other in self.slots if other != slot and other not in served]
        times = [[self.had[one, job.run.variant] for job in jobs] for one in (slot, *others)]
        rows, columns = linear_sum_assignment(times)
        chosen = dict(zip(rows, columns, strict=True))
        if 0 in chosen:
            return jobs[chosen[0]]
        return min(jobs, key=lambda job: self.had[slot, job.run.variant])

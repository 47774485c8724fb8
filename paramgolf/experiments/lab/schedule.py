"""Which run a GPU takes next: what has begun first, then seed by seed, variants in turn.

Seeds are paired: all variants of one before those of the next, in alternating order (the first to
the last, then back), so that a machine that grows hot or slow is nobody's disadvantage. GPUs of one
machine differ by two percent: of the variants that wait, a GPU takes the one that it had least.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

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

    @property
    def next_key(self) -> str:
        """The key of the stage that comes next."""
        return self.run.keys[self.left[0]]


@dataclass(slots=True)
class Schedule:
    """Jobs in order, and how often each slot (a GPU, or several) had each variant."""

    jobs: list[Job]
    had: Counter[tuple[str, str]] = field(default_factory=Counter)

    def take(self, slot: str, running: Collection[str]) -> Job | None:
        """Return the job that a free slot does next, None where none is ready.

        A job waits while another runs the very stage that it needs next; the keys of those are
        `running`.
        """
        ready = [j for j in self.jobs if j.left and not j.busy and j.next_key not in running]
        if not ready:
            return None
        begun = [job for job in ready if job.begun]
        if begun:
            return begun[0]
        first = min(job.round for job in ready)
        chosen = min(
            (job for job in ready if job.round == first),
            key=lambda job: self.had[slot, job.run.variant],
        )
        self.had[slot, chosen.run.variant] += 1
        return chosen

"""Whether a difference between groups of seeds is real: Welch's one-sided test, and the two rules.

Scores are bits per byte, lower is better. The contest's rule asks for an improvement of 0.005 nats
per token, shown at p < 0.01; the organizers later took any improvement at p < 0.25 (pg#1902).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import ttest_ind_from_stats

RECORD_NATS = 0.005  # per token
RECORD_P = 0.01
PROGRESS_P = 0.25
MOST_SEEDS = 100  # more is not a plan


@dataclass(frozen=True, slots=True)
class Sample:
    """Scores of one group: how many, their mean, their standard deviation (n - 1).

    `deviation` is None where one score cannot show any. A reference whose single scores are not
    published has `n` 0 and is taken as exact.
    """

    n: int
    mean: float
    deviation: float | None

    @property
    def moments(self) -> tuple[float, float, int]:
        """Mean, deviation and n as a test takes them."""
        if self.n == 0:  # exact: with a deviation of 0 the number of scores has no effect
            return self.mean, 0.0, 2
        assert self.deviation is not None
        return self.mean, self.deviation, self.n


@dataclass(frozen=True, slots=True)
class Welch:
    """Result of a one-sided test that a candidate's mean is lower than its reference's."""

    t: float
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A candidate against a reference; differences are candidate minus reference.

    `better` tests that there is an improvement, `by_margin` that it is at least RECORD_NATS; both
    are None where too few seeds ran. The seeds are those that a rule still lacks, None where no
    number up to MOST_SEEDS would do.
    """

    difference_bpb: float
    difference_nats: float  # per token
    better: Welch | None
    by_margin: Welch | None
    record: bool
    progress: bool
    seeds_for_record: int | None
    seeds_for_progress: int | None


def sample(scores: Sequence[float]) -> Sample:
    """Return what the tests need of some scores; there must be at least one."""
    deviation = statistics.stdev(scores) if len(scores) > 1 else None
    return Sample(len(scores), statistics.fmean(scores), deviation)


def welch(candidate: Sample, reference: Sample, margin: float = 0.0) -> Welch | None:
    """Test that the candidate's mean lies below the reference's by more than `margin`.

    None where a group has one score, or where no score differs from another, so that the test has
    no measure.
    """
    if any(group.n > 0 and group.deviation is None for group in (candidate, reference)):
        return None
    (mean, deviation, n), other = candidate.moments, reference.moments
    if deviation == other[1] == 0:
        return None
    test = ttest_ind_from_stats(
        mean + margin, deviation, n, *other, equal_var=False, alternative="less"
    )
    return Welch(float(test.statistic), float(test.pvalue))


def difference(
    candidate: Sample, reference: Sample, *, bytes_per_token: float, both: bool = False
) -> Difference:
    """Compare a candidate with a reference by both rules.

    `bytes_per_token` is that of the candidate's text; it turns bits per byte into nats per token.
    `both` says that the reference can be given more seeds too.
    """
    nats = math.log(2) * bytes_per_token
    margin = RECORD_NATS / nats
    bpb = candidate.mean - reference.mean
    better, by_margin = welch(candidate, reference), welch(candidate, reference, margin)
    return Difference(
        difference_bpb=bpb,
        difference_nats=bpb * nats,
        better=better,
        by_margin=by_margin,
        record=by_margin is not None and by_margin.p < RECORD_P,
        progress=better is not None and better.p < PROGRESS_P,
        seeds_for_record=more_seeds(candidate, reference, margin, RECORD_P, both=both),
        seeds_for_progress=more_seeds(candidate, reference, 0.0, PROGRESS_P, both=both),
    )


def more_seeds(
    candidate: Sample, reference: Sample, margin: float, level: float, *, both: bool = False
) -> int | None:
    """Return how many more seeds would bring p below `level`, if they score as those before.

    Means and deviations are assumed to stay the same; a single seed is given the other group's
    deviation. The candidate gets the seeds, and with `both` the reference as many. None if
    MOST_SEEDS would not suffice.
    """
    known = [d for d in (candidate.deviation, reference.deviation) if d is not None]
    if not known or candidate.mean - reference.mean + margin >= 0:
        return None

    def grown(group: Sample, more: int) -> Sample:
        deviation = known[0] if group.deviation is None else group.deviation
        return group if group.n == 0 else Sample(group.n + more, group.mean, deviation)

    for more in range(MOST_SEEDS + 1):
        groups = grown(candidate, more), grown(reference, more if both else 0)
        if any(group.n == 1 for group in groups):
            continue
        test = welch(*groups, margin)
        if test is not None and test.p < level:
            return more
    return None

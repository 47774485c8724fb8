"""Welch's test against scipy and against the published comparison of #1855 with #1493."""

from __future__ import annotations

import math

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.experiments.statistics import Sample, difference, more_seeds, sample, welch

PR1493 = (1.08079, 1.08103, 1.08118)
PR1855 = (1.05989454, 1.06124613, 1.06208695)
BYTES_PER_TOKEN = 3.727  # of the published 8,192-word tokens
scores = st.lists(st.integers(10_000, 12_000).map(lambda n: n / 1e4), min_size=2, max_size=6)


@pytest.mark.filterwarnings("ignore:Precision loss")
@settings(deadline=None, max_examples=60)
@given(candidate=scores, reference=scores, margin=st.sampled_from([0.0, 0.002, -0.01]))
def test_welch_is_scipys(candidate, reference, margin):
    found = welch(sample(candidate), sample(reference), margin)
    if len({*candidate}) == 1 and len({*reference}) == 1:
        assert found is None
        return
    moved = [score + margin for score in candidate]
    expected = scipy.stats.ttest_ind(moved, reference, equal_var=False, alternative="less")
    assert found is not None
    assert found.t == pytest.approx(expected.statistic, rel=1e-6, abs=1e-9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)


def test_the_verdict_on_1855_against_1493_is_as_by_hand():
    """By hand: means 1.061076 and 1.081; s^2 / n 4.08e-7 and 1.29e-8; t -30.7 at 2.13 degrees."""
    found = welch(sample(PR1855), sample(PR1493))
    assert found is not None
    assert found.t == pytest.approx(-30.7, abs=0.05)
    assert found.p == pytest.approx(3.7e-4, abs=2e-5)
    verdict = difference(sample(PR1855), sample(PR1493), bytes_per_token=BYTES_PER_TOKEN)
    assert verdict.record
    assert verdict.progress
    assert (verdict.seeds_for_record, verdict.seeds_for_progress) == (0, 0)
    assert verdict.difference_nats == pytest.approx(-0.01992 * math.log(2) * 3.727, abs=2e-5)


def test_a_margin_asks_for_more_than_being_better():
    """0.0015 bits per byte better is sure, but is 0.0039 nats per token and not 0.005."""
    candidate = sample([1.0792, 1.0793, 1.0794])
    verdict = difference(
        candidate, sample([1.0807, 1.0808, 1.0809]), bytes_per_token=BYTES_PER_TOKEN
    )
    assert verdict.better is not None
    assert verdict.better.p < 0.001
    assert verdict.progress
    assert not verdict.record
    assert verdict.seeds_for_record is None


@pytest.mark.parametrize(
    ("lower", "progress", "record"),
    [
        (0.00060, False, False),
        (0.00062, True, False),
        (0.00490, True, False),
        (0.00510, True, True),
    ],
)
def test_each_rule_has_its_level(lower, progress, record):
    """Of t at 4 degrees: 0.741 standard errors for p 0.25, and 3.747 beyond the margin for 0.01.

    A standard error is 0.001 sqrt(2 / 3), and the margin 0.005 / (ln 2 x 3.727) bits per byte.
    """
    found = difference(
        Sample(3, 1.08 - lower, 0.001), Sample(3, 1.08, 0.001), bytes_per_token=BYTES_PER_TOKEN
    )
    assert (found.progress, found.record) == (progress, record)


def test_a_record_without_seeds_is_a_test_of_one_group():
    candidate = [1.0551, 1.0556, 1.0549]
    found = welch(sample(candidate), Sample(0, 1.05651, None))
    expected = scipy.stats.ttest_1samp(candidate, 1.05651, alternative="less")
    assert found is not None
    assert found.t == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue)


def test_one_seed_cannot_be_tested():
    one, three = sample([1.07]), sample(PR1493)
    assert one.deviation is None
    assert welch(one, three) is None
    verdict = difference(one, three, bytes_per_token=BYTES_PER_TOKEN)
    assert (verdict.better, verdict.record, verdict.progress) == (None, False, False)
    assert verdict.seeds_for_progress == 1


def test_more_seeds_are_the_fewest_that_decide():
    candidate, reference = Sample(3, 1.0795, 0.002), Sample(3, 1.0810, 0.0002)
    more = more_seeds(candidate, reference, 0.0, 0.01)
    assert more is not None
    assert more > 0
    for n, decided in ((3 + more - 1, False), (3 + more, True)):
        found = welch(Sample(n, 1.0795, 0.002), reference)
        assert found is not None
        assert (found.p < 0.01) is decided


def test_more_seeds_for_both_groups_may_decide_what_one_cannot():
    candidate, noisy = Sample(3, 1.080, 0.0002), Sample(3, 1.081, 0.002)
    assert more_seeds(candidate, noisy, 0.0, 0.01) is None
    # with 26 each t is -0.001 / sqrt(4.04e-6 / 26) = -2.54; p below 0.01 asks for 2.49
    assert more_seeds(candidate, noisy, 0.0, 0.01, both=True) == 23
    alone = Sample(1, 1.0, None)
    assert more_seeds(alone, alone, -0.1, 0.01, both=True) is None  # no deviation is known


def test_what_is_not_better_is_never_decided():
    worse = difference(sample([1.09, 1.091]), sample(PR1493), bytes_per_token=BYTES_PER_TOKEN)
    assert worse.seeds_for_progress is None
    assert not worse.progress
    assert worse.difference_bpb > 0

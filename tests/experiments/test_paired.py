"""Paired differences against scipy and known numbers; what a number of seeds can show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from paramgolf.experiments.paired import paired, pooled_deviation, seeds_for, smallest_effect

CANDIDATE = {1: [1.1340], 2: [1.1335], 3: [1.1352], 4: [1.1329]}
REFERENCE = {4: [1.1341], 3: [1.1359], 2: [1.1352], 1: [1.1346], 9: [2.0]}


def test_differences_are_those_of_equal_seeds():
    found = paired(CANDIDATE, REFERENCE)
    ours = [CANDIDATE[seed][0] for seed in CANDIDATE]
    theirs = [REFERENCE[seed][0] for seed in CANDIDATE]
    test = stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(0.95)
    assert (found.n, found.replicates) == (4, "other seeds")
    assert found.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert paired(REFERENCE, CANDIDATE).p == pytest.approx(found.p)


def test_equal_differences_give_no_p():
    found = paired({1: [1.0], 2: [1.5]}, {1: [1.25], 2: [1.75]})
    assert (found.low, found.high, found.p) == (-0.25, -0.25, None)


def test_repeats_of_one_seed_give_no_interval_and_no_p():
    found = paired({1: [1.10, 1.14]}, {1: [1.21]})
    assert found.mean == pytest.approx(-0.09)
    assert (found.n, found.replicates) == (1, "same seed")
    assert found.low is found.high is found.p is found.deviation is None
    assert paired({1: [1.21]}, {1: [1.10, 1.14]}).replicates == "same seed"


def test_repeats_of_a_seed_count_once_among_others():
    once = paired({1: [1.0], 2: [1.2]}, {1: [1.1], 2: [1.1]})
    twice = paired({1: [0.9, 1.1], 2: [1.2]}, {1: [1.1], 2: [1.0, 1.2]})
    assert twice.n == 2
    assert (twice.low, twice.p) == pytest.approx((once.low, once.p))


def test_without_a_common_seed_there_is_no_difference():
    assert paired({1: [1.0]}, {2: [1.0]}) is None
    assert paired({1: [1.0]}, {1: [1.5]}).replicates == "none"


def test_deviations_are_pooled_within_groups():
    groups = [{1: [2.1], 2: [2.3]}, {1: [1.9], 2: [2.0], 3: [2.1]}, {1: [3.0]}]
    deviation, freedom = pooled_deviation(groups)  # variances 0.02 and 0.01
    assert (deviation, freedom) == (pytest.approx(math.sqrt(0.04 / 3)), 3)
    assert pooled_deviation([{1: [1.0]}, {1: [1.0, 2.0]}]) is None


def test_the_smallest_effect_is_shown_in_four_cases_of_five():
    """By drawing: pairs of runs that scatter by 1, four at a time."""
    effect, draws, n = smallest_effect(1.0, 4), 20_000, 4
    generator = np.random.default_rng(0)
    pairs = generator.normal(effect, math.sqrt(2), (draws, n))
    shown = stats.ttest_1samp(pairs, 0, axis=1)
    share = np.mean((shown.pvalue < 0.05) & (shown.statistic > 0))
    assert share == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / draws))


def test_one_seed_shows_nothing_and_many_show_little():
    assert smallest_effect(0.0009, 1) is None
    many = 400  # there it is the normal distribution's
    normal = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 0.0009 * math.sqrt(2 / many)
    assert smallest_effect(0.0009, many) == pytest.approx(normal, rel=0.01)


@pytest.mark.parametrize(("effect", "deviation"), [(0.001, 0.0009), (0.003, 0.0009), (1e-3, 5e-3)])
def test_as_many_seeds_as_said_show_an_effect_and_one_less_does_not(effect, deviation):
    seeds = seeds_for(effect, deviation)
    assert smallest_effect(deviation, seeds) <= effect
    assert seeds == 2 or smallest_effect(deviation, seeds - 1) > effect


def test_an_effect_can_be_too_small_for_any_number_of_seeds():
    assert seeds_for(0.001, 0.1) is None

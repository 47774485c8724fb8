"""Geometry of the charts: axes hold their values, labels are distinct, thinning keeps the mean."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.report.charts import Axis, polyline, thin

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 6))


@settings(deadline=None, max_examples=200)
@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_an_axis_holds_its_values_between_distinct_labels(values):
    axis = Axis.over(values)
    slack = 1e-6 * (axis.high - axis.low)
    assert axis.low - slack <= min(values) <= max(values) <= axis.high + slack
    assert 2 <= len(axis.ticks) <= 8
    labels = axis.labels()
    assert labels[0][0] == 0
    assert labels[-1][0] == 100
    assert len({text for _, text in labels}) == len(labels)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 400], ["0", "100", "200", "300", "400"]),
        ([1.7702, 1.8127], ["1.76", "1.78", "1.80", "1.82"]),
        ([0, 20000], ["0", "5,000", "10,000", "15,000", "20,000"]),
        ([5, 5], ["5.0", "7.5", "10.0"]),
    ],
)
def test_labels_are_round_numbers(values, labels):
    ticks = 2 if values == [5, 5] else 4
    assert [text for _, text in Axis.over(values, ticks=ticks).labels()] == labels


def test_zero_is_held_where_asked():
    assert Axis.over([3, 4], zero=True).low == 0
    assert Axis.over([-3, -4], zero=True).high == 0


def test_a_polyline_runs_from_left_to_right_and_up():
    axis = Axis.over([0, 10])
    assert polyline([(0, 0), (5, 10), (10, 5)], axis, axis) == "0,100 50,0 100,50"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=100), st.integers(1, 30))
def test_thinning_keeps_to_the_limit_and_within_the_range(points, limit):
    thinned = thin(points, limit)
    assert len(thinned) <= limit
    assert min(b for _, b in points) - 1e-6 <= min(b for _, b in thinned)
    assert max(b for _, b in thinned) <= max(b for _, b in points) + 1e-6


def test_few_points_are_kept_as_they_are():
    points = [(1.0, 2.0), (2.0, 3.0)]
    assert thin(points, 2) == points
    assert thin([*points, (3.0, 7.0)], 2) == [(1.5, 2.5), (3.0, 7.0)]
    assert math.isclose(thin([(0.0, 0.1)] * 10, 1)[0][1], 0.1)

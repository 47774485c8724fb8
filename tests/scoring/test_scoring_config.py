"""What is wrong with the evaluators' parameters is said before any work."""

import pytest
from scoring_case import make_config

from paramgolf.scoring.config import SlidingConfig


def test_good_parameters_have_no_faults():
    assert list(make_config().faults()) == []
    assert list(SlidingConfig(window=8, stride=8, batch_windows=1, max_tokens=1).faults()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 5}, "stride` must divide `window`"),
        ({"stride": 17}, "stride` must lie in 1..window"),
        ({"window": 0}, "stride` must lie in 1..window"),
        ({"chunk_tokens": 40}, "chunk_tokens` must be a multiple of `window`"),
        ({"chunk_tokens": 0}, "must be at least 1"),
        ({"epochs": 0}, "must be at least 1"),
        ({"max_tokens": 0}, "max_tokens` must be at least 1, or null"),
        ({"momentum": 1.0}, "`momentum` in 0..1"),
        ({"lr": -0.1}, "must be 0 or more"),
    ],
)
def test_faults_of_adaptation(changes, message):
    (fault,) = make_config(**changes).faults()
    assert message in fault


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 9}, "1..window"),
        ({"batch_windows": 0}, "at least 1"),
        ({"max_tokens": 0}, "null"),
    ],
)
def test_faults_of_sliding(changes, message):
    fields = {"window": 8, "stride": 4, "batch_windows": 1, "max_tokens": None}
    (fault,) = SlidingConfig(**{**fields, **changes}).faults()
    assert message in fault

"""Schedules at the points where they bend."""

from __future__ import annotations

import dataclasses

import pytest

from paramgolf.training.config import BatchSizes
from paramgolf.training.schedule import (
    decay_multiplier,
    ema_decay,
    lr_multiplier,
    muon_momentum,
    point,
)


@pytest.fixture
def config(sample):
    return dataclasses.replace(
        sample.train, steps=100, budget_seconds=None, warmdown=0.5, min_lr=0.1
    )


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1.0), (50, 1.0), (75, 0.5), (94, 0.12), (99, 0.1), (100, 0.1)]
)
def test_rate_is_flat_then_falls_to_its_floor(config, step, expected):
    assert lr_multiplier(config, point(config, step, 0.0)) == pytest.approx(expected)


def test_rates_may_grow_with_the_batch(config):
    tripled = BatchSizes(at=0.5, batch_tokens=3 * config.batch_tokens, sequence_length=32)
    growing = dataclasses.replace(config, curriculum=(tripled,), batch_rate_power=0.5)
    rates = [growing.batch_rate(growing.sizes_at(fraction)) for fraction in (0.4, 0.5)]
    assert rates == pytest.approx([1.0, 3**0.5])
    assert config.batch_rate(tripled) == 1.0


def test_time_budget_counts_seconds_without_the_reserve(config):
    timed = dataclasses.replace(config, steps=None, budget_seconds=110.0, reserve_seconds=10.0)
    assert point(timed, 7, 25.0).fraction == pytest.approx(0.25)
    assert point(timed, 7, 101.0).fraction == 1.0
    assert lr_multiplier(timed, point(timed, 7, 75.0)) == pytest.approx(0.5)


def test_the_nearer_end_rules(config):
    both = dataclasses.replace(config, budget_seconds=100.0, reserve_seconds=0.0)
    assert point(both, 10, 50.0).fraction == pytest.approx(0.5)
    assert point(both, 60, 50.0).fraction == pytest.approx(0.6)


def test_warmdown_in_steps_adapts_to_the_measured_step(config):
    steps = dataclasses.replace(
        config, steps=None, budget_seconds=100.0, warmdown_unit="steps", warmdown=40.0, min_lr=0.0
    )
    # 20 steps in 50 s: 20 more are to come, half of the warmdown
    assert lr_multiplier(steps, point(steps, 20, 50.0)) == pytest.approx(0.5)


def test_weight_decay_falls_to_its_share(config):
    tapered = dataclasses.replace(config, decay_taper_start=0.6, decay_taper_share=0.25)
    found = [decay_multiplier(tapered, point(tapered, step, 0.0)) for step in (0, 60, 80, 100)]
    assert found == pytest.approx([1.0, 1.0, 0.625, 0.25])


def test_momentum_rises_then_stays(config):
    values = [muon_momentum(config, step) for step in (0, 50, 100, 1000)]
    assert values == pytest.approx([0.85, 0.90, 0.95, 0.95])


def test_average_forgets_its_start_only_with_warmup(config):
    assert ema_decay(dataclasses.replace(config, ema_warmup=False), 0, 0.9) == 0.9
    warm = dataclasses.replace(config, ema_warmup=True)
    assert ema_decay(warm, 0, 0.9) == pytest.approx(0.1)
    assert ema_decay(warm, 10_000, 0.9) == 0.9

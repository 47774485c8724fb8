"""Mutants of model.bin behind right checksums; benchmarks/fuzz.py tries thousands."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("fuzz_models")


def outcomes(models, kind, count):
    found = []
    for seed in range(count):
        rng = random.Random(seed)
        header, streams = models.parts_of(models.valid_file(rng.choice(models.CODECS)))
        found.append(models.read(kind(rng, header, streams)))
    return found


def test_unchanged_files_are_read(models):
    for codec in models.CODECS:
        assert models.read(models.valid_file(codec)) == "the same weights"
        header, streams = models.parts_of(models.valid_file(codec))
        assert models.read(models.sealed(header, streams)) == "the same weights"


@pytest.mark.parametrize(
    ("kind", "count", "least_refused"),
    [
        ("change_values", 200, 150),
        ("change_text", 100, 90),
        ("change_streams", 60, 40),
        ("lay_out", 12, 12),
        ("grow", 8, 3),
    ],
)
def test_mutants_are_refused_or_finite(models, kind, count, least_refused):
    """No other error, no weights that are not finite; `read` sees to it."""
    found = outcomes(models, getattr(models, kind), count)
    assert found.count("refused") >= least_refused
    assert {*found} <= {"refused", "the same weights", "other weights"}

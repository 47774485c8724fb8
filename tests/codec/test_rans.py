"""The entropy coder of integers: exact round trips, its size, and damaged data."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.codec.codecs import decompress
from paramgolf.codec.rans import HEADER, decode, read_layout
from paramgolf.codec.rans_model import (
    CLASS_RANGE,
    CLASSES_PER_OCTAVE,
    EXPECTED_MAGNITUDE,
    FIRST_CLASS,
    MEANS,
    PROB_BITS,
    TAIL_SHARE,
    Layout,
    Moments,
    inverses,
    meanings,
    next_states,
    tables,
)
from paramgolf.codec.rans_writer import CodingPlan, encodable, encode, follows_trellis
from paramgolf.codec.writer import compress
from paramgolf.errors import ParamGolfError


def gaussian(rows, columns, *, deviation=2.4, spread=0.0, seed=0):
    generator = np.random.default_rng(seed)
    sizes = deviation * np.exp(spread * generator.standard_normal(columns))
    values = np.round(generator.standard_normal((rows, columns)) * sizes)
    return np.clip(values, -127, 127).astype(np.int8)


def entropy_bytes(values):
    _, counts = np.unique(values, return_counts=True)
    return -(counts * np.log2(counts / counts.sum())).sum() / 8


def coded(values, shape=None):
    """Return the data of integers, which must come back exactly."""
    data = encode(values.tobytes(), shape or values.shape)
    assert decode(data, values.size) == values.tobytes()
    return data


def plan(values, **layout):
    """Return the plan of a layout of which the rest is off."""
    off = dict.fromkeys(("shrinkage", "trellis", "transposed", "row_bytes", "outliers"), 0)
    return CodingPlan(values, Layout(*values.shape, **(off | layout)))


def trellis(blocks, rows, columns):
    """Integers of random walks through the trellis."""
    generator = np.random.default_rng(0)
    values = np.zeros((blocks, rows, columns), np.int64)
    states = np.zeros((blocks, columns), np.int64)
    for i in range(rows):
        halves = np.round(2 * generator.standard_normal(states.shape)).astype(np.int64)
        values[:, i] = 2 * halves + (states & 1)
        states = next_states(states, halves)
    return values.astype(np.int8)


def correlated(blocks, rows, columns):
    """Integers with a mean a row, and rows that go together; the same in all blocks."""
    generator = np.random.default_rng(0)
    common = generator.standard_normal((rows, 4))
    shared = common @ generator.standard_normal((blocks, 4, columns))
    values = 4 * generator.standard_normal(shared.shape) + 3 * shared + 2 * common[:, :1]
    return np.clip(np.round(values), -127, 127).astype(np.int8)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 24), min_size=2, max_size=3).map(tuple),
    deviation=st.floats(0.0, 200.0),
    spread=st.floats(0.0, 2.0),
    seed=st.integers(0, 10**6),
)
def test_gaussian_integers_come_back_exactly(shape, deviation, spread, seed):
    rows = math.prod(shape[:-1])
    raw = gaussian(rows, shape[-1], deviation=deviation, spread=spread, seed=seed).tobytes()
    data = encode(raw, shape)
    assert decode(data, len(raw)) == raw == decompress("rans", data, len(raw))
    assert encode(raw, shape) == data == compress("rans", raw, shape)


@pytest.mark.parametrize("raw", [b"\0", b"\x80" * 64, b"\x7f" * 64, bytes(range(256)) * 3])
@pytest.mark.parametrize("columns", [1, 32])
def test_constant_and_full_range_integers_come_back(raw, columns):
    rows = -(-len(raw) // columns)
    coded(np.frombuffer(raw.ljust(rows * columns, b"\0"), np.int8).reshape(rows, columns))


def test_outliers_are_kept_beside():
    values = gaussian(256, 32, deviation=1.0)
    values[7, 3], values[100, 30] = 127, -128
    assert read_layout(coded(values)).outliers == 2


@pytest.mark.parametrize("place", [256 * 32, 2**32 - 1])
def test_an_outlier_elsewhere_is_refused(place):
    values = gaussian(256, 32, deviation=1.0)
    values[7, 3] = 127
    data = bytearray(coded(values))
    data[HEADER.size : HEADER.size + 4] = place.to_bytes(4, "little")
    with pytest.raises(ParamGolfError, match="outlier elsewhere"):
        decode(bytes(data), values.size)


@pytest.mark.filterwarnings("error")  # numpy's of the logarithm of 0
def test_rows_of_zeros_among_others_take_few_bytes():
    values = gaussian(64, 512)
    sparse = values.copy()
    sparse[::2] = 0
    assert len(coded(sparse)) < 0.6 * len(coded(values))


def test_columns_of_unlike_size_choose_how_soon_they_tell_their_own():
    prior = {
        spread: read_layout(coded(gaussian(256, 1024, deviation=4.0, spread=spread))).scale_prior
        for spread in (0.0, 1.0)
    }
    assert prior[1.0] < prior[0.0]


@pytest.mark.parametrize("is_trellis", [False, True])
def test_columns_are_planned_at_once_as_they_would_be_row_by_row(is_trellis):
    """Outliers raise their column's deviation, and bring others into reach of their tables."""
    values = trellis(3, 64, 200) if is_trellis else gaussian(192, 200, deviation=0.6)
    values = values.reshape(3, 64, 200)
    chosen = np.random.default_rng(0).random(values.shape) < 0.03
    values[chosen] += 16  # 8 in halves: the trellis's parities and states stay
    first_class = 20 + 8 * is_trellis
    made = plan(values, scale_prior=4, trellis=int(is_trellis), first_class=first_class)
    places, shaped = made.places.copy(), made.shaped.copy()
    assert (shaped != values).sum() > 50
    made._follow()
    assert (places == made.places).all()
    assert (shaped == made.shaped).all()
    assert decode(made.encode(), values.size) == values.tobytes()


def test_what_cannot_be_coded_is_not_encodable():
    assert not encodable((0, 4))
    assert not encodable((4,))
    assert not encodable(())
    assert encodable((1, 1))
    assert encodable((2, 3, 4))


def test_size_is_near_the_entropy_and_columns_of_unlike_size_pay():
    alike = gaussian(16384, 64)
    brotli = len(compress("brotli", alike.tobytes()))
    ours = len(coded(alike))
    assert ours < 1.01 * entropy_bytes(alike)
    assert ours < brotli
    unlike = gaussian(16384, 64, spread=0.5)
    assert len(coded(unlike)) < 0.97 * entropy_bytes(unlike)


def test_a_trellis_is_recognized_and_saves_a_bit_an_integer():
    values = trellis(3, 1024, 64)
    assert follows_trellis(values)
    data = coded(values)
    assert abs(len(data) - (entropy_bytes(values) - values.size / 8)) < 0.04 * len(data)
    values[1, 70, 5] ^= 1
    assert not follows_trellis(values)
    coded(values)


def test_rows_of_a_trellis_may_be_predicted():
    values = trellis(4, 40, 64)  # more rows than a panel
    data = plan(values, shrinkage=50, scale_prior=16, trellis=1, first_class=33).encode()
    assert decode(data, values.size) == values.tobytes()


@pytest.mark.parametrize("outlier", [-127, 126, 127])
def test_an_outlier_does_not_lead_a_trellis_astray(outlier):
    values = trellis(2, 64, 32)
    values[0, 9:64, 4] = outlier
    states, column = 0, values[0, :, 4].astype(int)
    for i in range(64):
        column[i] -= (column[i] - states) & 1  # the nearest of the state's parity
        states = int(next_states(np.array(states), np.array(column[i] >> 1)))
    values[0, :, 4] = column
    assert follows_trellis(values)
    coded(values)


def test_rows_of_unlike_size_pay():
    values = np.ascontiguousarray(gaussian(512, 256, spread=0.5).T).reshape(2, 128, 512)
    data = coded(values)
    assert read_layout(data).row_bytes > 0
    assert len(data) < 0.97 * entropy_bytes(values)


@pytest.mark.parametrize("shape", [(8, 32, 1024), (8192, 32)])
def test_rows_that_go_together_are_predicted(shape):
    values = correlated(8, 32, 1024)
    values = np.ascontiguousarray(values.transpose(0, 2, 1)) if len(shape) == 2 else values
    data = coded(values, shape)
    assert read_layout(data).shrinkage > 0
    assert len(data) < 0.95 * entropy_bytes(values)


def test_tables_lie_clear_of_rounding():
    """No frequency, and no class of a mean, may depend on a platform's last digit."""
    starts = tables()
    assert (starts[:, -1] == 2**PROB_BITS).all()
    assert len(meanings()) == len(starts) * 2**PROB_BITS
    nearest = 1.0
    for row in range(len(starts)):
        deviation = 2.0 ** ((row // MEANS + FIRST_CLASS) / CLASSES_PER_OCTAVE)
        edges = (np.arange(257) - 128.5 - row % MEANS / MEANS) / (deviation * math.sqrt(2))
        parts = [np.diff([math.erf(x / wide) for x in edges]) / 2 for wide in (1, 2)]
        mixed = (1 - TAIL_SHARE) * parts[0] + TAIL_SHARE * parts[1]
        inside = np.diff(starts[row]) > 1
        exact = mixed[inside] / mixed[np.diff(starts[row]) > 0].sum() * 2**PROB_BITS
        nearest = min(nearest, np.abs(exact - np.floor(exact) - 0.5).min(initial=1))
    assert nearest > 1e-8
    powers = 2.0 ** (16 - (np.arange(len(inverses())) + CLASS_RANGE[0] + FIRST_CLASS) / 8)
    assert np.abs(powers - np.floor(powers) - 0.5).min() > 1e-8
    exact = CLASSES_PER_OCTAVE * np.log2(np.arange(1, 1024) / EXPECTED_MAGNITUDE)
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-8


def test_a_cautious_encoder_avoids_numbers_near_a_half(monkeypatch):
    values = correlated(8, 16, 128)
    shrinkage = read_layout(coded(values)).shrinkage
    asked, predict = [], Moments.predict

    def near(self, row_steps):
        asked.append(self.layout.shrinkage)
        found, distance = predict(self, row_steps)
        return found, 0.0 if self.layout.shrinkage == shrinkage else distance

    monkeypatch.setattr(Moments, "predict", near)
    assert read_layout(coded(values)).shrinkage == shrinkage + 1


def test_every_truncation_and_whatever_follows_is_refused():
    raw = gaussian(50, 16).tobytes()
    data = encode(raw, (50, 16))
    for size in range(0, len(data), 3):
        with pytest.raises(ParamGolfError):
            decode(data[:size], len(raw))
    for more in (b"x", b"xy"):
        with pytest.raises(ParamGolfError):
            decode(data + more, len(raw))
    for size in (0, 16, len(raw) - 16, len(raw) + 16, len(raw) - 1, 2**28):
        with pytest.raises(ParamGolfError):
            decode(data, size)


@pytest.mark.parametrize(
    "values",
    [
        gaussian(50, 16)[None],
        np.ascontiguousarray(gaussian(64, 16, spread=1.0).T)[None],
        trellis(2, 16, 16),
        correlated(8, 8, 32),
    ],
)
def test_mutations_do_not_crash(values):
    data, generator, refused = encode(values.tobytes(), values.shape), random.Random(0), 0
    for _ in range(300):
        mutant = bytearray(data)
        end = len(mutant) if generator.random() < 0.5 else HEADER.size + 40
        mutant[generator.randrange(end)] ^= 1 << generator.randrange(8)
        try:
            assert len(decode(bytes(mutant), values.size)) == values.size
        except ParamGolfError:
            refused += 1
    assert refused > 250  # a flipped bit shows in the states at the end

"""An entropy coder for quantised integers: rANS (arXiv 1311.2540), one state a lane, in numpy.

Integers come as blocks of [steps, lanes]; a block's steps are decoded one after another, all lanes
at once. What is expected of an integer is a normal distribution: its mean is predicted from the
steps before it in its lane, by what the blocks before showed of how steps go together; its
deviation is that of the step times what the lane's errors have been. Integers that a trellis chose
(paramgolf.quant.trellis) have a parity that follows from those before. See docs/container.md.

Every platform must come to the same tables: all is whole numbers but for `fit` and `tables`, whose
results are rounded, and the encoder sees to it that none of `fit` lies near a half.
"""

from __future__ import annotations

import functools
import math
import struct
from typing import NamedTuple

import numpy as np

from paramgolf.errors import ParamGolfError

BITS = 14  # the frequencies of a table add up to 2^14
LOWEST = 2**16  # states lie in 2^16..2^32; words of 16 bits fill them up
HEADER = struct.Struct("<IIIIHHBBI")
UNIT = 12  # means are in units of 2^-12
SHIFTS, OCTAVE, CLASSES = 8, 8, 64  # tables a unit of mean, classes a doubling of deviation, in all
SMALLEST = -2 * OCTAVE  # class 0 is a deviation of 1/4
TYPICAL = 204  # 256 times the mean magnitude of a standard normal variable
MOST_STEPS = 2**12  # that predict each other
PRIOR = 16  # lanes that the first deviation counts for
PANEL = 32
MARGIN = 1e-9
# the states of a trellis after each state and parity of the half
NEXT = np.array([0, 2, 5, 7, 1, 3, 4, 6, 2, 0, 7, 5, 3, 1, 6, 4])
REACH = 5  # deviations within which every symbol can be coded
WORN = 0.005  # share of a table that belongs to twice the deviation


class Layout(NamedTuple):
    """How integers are coded: blocks of [steps, lanes], or of [lanes, steps] if `across`.

    `caution` is the number of lanes that must have been seen before their covariance counts for
    half; 0: steps are not predicted. `patience` is the number of steps that a lane's errors must
    outweigh. `deviation` is the class of the first deviation; a trellis begins anew every `segment`
    steps, 0: there is none. `outliers` are integers beyond their table, kept beside.
    """

    blocks: int
    steps: int
    lanes: int
    caution: int
    patience: int
    segment: int
    across: int
    deviation: int
    outliers: int


class Fit(NamedTuple):
    """What a block's steps are expected to be.

    `weights` [steps, steps] are those of the steps before (None: they say nothing), `constant`
    [steps] is in 2^-12; `classes` are of deviation, `inverse` is 2^16 / deviation. Whole numbers.
    """

    weights: np.ndarray | None
    constant: np.ndarray
    classes: np.ndarray
    inverse: np.ndarray


class Moments:
    """Sums over the lanes of the blocks so far: whole numbers, the same in any order of adding."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.count = layout, 0
        size = layout.steps if layout.caution else 0
        self.sums, self.products = np.zeros(size), np.zeros((size, size))

    def add(self, block: np.ndarray) -> None:
        """Add a block, int8 [steps, lanes]."""
        if self.layout.caution:
            exact = block.astype(np.float64)
            self.count += exact.shape[1]
            self.sums += exact.sum(1)
            self.products += exact @ exact.T

    def fit(self) -> tuple[Fit, float]:
        """Return what is expected of the next block, and how near to a half anything was."""
        first = 2.0 ** ((self.layout.deviation + SMALLEST) / OCTAVE)
        size = self.layout.steps
        if not self.layout.caution:
            flat = np.ones(size, np.int64)
            return Fit(None, 0 * flat, flat * self.layout.deviation, flat * int(2**16 / first)), 1.0
        count = self.count
        mean = self.sums / (count + PRIOR)
        centred = self.sums / max(count, 1)
        covariance = self.products / max(count, 1) - np.outer(centred, centred)
        variance = (covariance.diagonal() * count + first**2 * PRIOR) / (count + PRIOR)
        covariance *= count / (count + self.layout.caution)
        np.fill_diagonal(covariance, variance)
        lower = np.linalg.cholesky(covariance)
        deviation = lower.diagonal()
        whitened = deviation[:, None] * np.linalg.inv(lower)
        exact = (
            np.tril(-whitened, -1) * 2**UNIT,
            whitened @ mean * 2**UNIT,
            OCTAVE * np.log2(deviation) - SMALLEST,
            2**16 / deviation,
        )
        near = min(float(np.abs(x - np.floor(x) - 0.5).min()) for x in exact)
        weights, *rest = (np.rint(x) for x in exact)
        constant, classes, inverse = (x.astype(np.int64) for x in rest)
        classes = classes.clip(OCTAVE - CLASSES, 2 * CLASSES - 1)  # beyond, tables are the last
        return Fit(weights, constant, classes, inverse), near


@functools.cache
def tables() -> tuple[np.ndarray, np.ndarray]:
    """Return where symbols begin, int64 [tables, 257], and what each slot stands for, int64, flat.

    Table class x SHIFTS + s is that of a deviation and of a mean s / SHIFTS above whole. A slot is
    its symbol << 29 | its place among the symbol's << 15 | the symbol's frequency, which is at
    least 1 within REACH deviations. Starts are of symbol + 128.
    """
    edges = [-128.5 + i for i in range(257)]
    starts = np.zeros((CLASSES * SHIFTS, 257), np.int64)
    for row in range(len(starts)):
        deviation = 2.0 ** ((row // SHIFTS + SMALLEST) / OCTAVE)
        mean, scale = row % SHIFTS / SHIFTS, 1 / (deviation * math.sqrt(2))
        low, high = (
            max(0, min(256, round(mean + 128 + x * (REACH * deviation + 1)))) for x in (-1, 1)
        )
        narrow = [math.erf((edges[i] - mean) * scale) for i in range(low, high + 1)]
        wide = [math.erf((edges[i] - mean) * scale / 2) for i in range(low, high + 1)]
        mixed = np.diff((1 - WORN) * np.array(narrow) + WORN * np.array(wide)) / 2
        counts = np.maximum(1, np.rint(mixed / mixed.sum() * 2**BITS)).astype(np.int64)
        counts[counts.argmax()] += 2**BITS - counts.sum()
        starts[row, low + 1 : high + 1] = counts.cumsum()
        starts[row, high + 1 :] = 2**BITS
    frequency = np.diff(starts)
    symbols = (np.arange(-128, 128) << 29) - (starts[:, :-1] << 15) + frequency
    slots = symbols.ravel().repeat(frequency.ravel()).reshape(-1, 2**BITS)
    slots += np.arange(2**BITS) << 15
    return starts, slots.ravel()


@functools.cache
def scaled_classes() -> np.ndarray:
    """Return the tables of classes scaled by a lane's mean error, flat: 1024 means for each class.

    The first class is -CLASSES; a mean error of 256 is the step's deviation.
    """
    means = np.maximum(np.arange(1024), 1)
    differences = np.rint(OCTAVE * np.log2(means / TYPICAL)).astype(np.int64)
    classes = np.arange(-CLASSES, 2 * CLASSES)[:, None] + differences
    return (classes.clip(0, CLASSES - 1) * SHIFTS).ravel()


def next_states(states: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Return a trellis's states after integers 2 x halves + (states & 1): Ungerboeck's 8."""
    return NEXT[states << 1 | halves & 1]


def decode(data: bytes, size: int) -> bytes:
    """Return the `size` int8 that `data` stands for; whatever is wrong is a ParamGolfError."""
    if len(data) < HEADER.size:
        raise ParamGolfError("rans data cut short")
    layout = Layout(*HEADER.unpack_from(data))
    shape = layout[:3]
    begin = HEADER.size + 5 * layout.outliers
    if (
        min(shape) < 1
        or math.prod(shape) != size
        or (layout.caution and not (layout.caution > PRIOR and layout.steps <= MOST_STEPS))
        or layout.deviation >= CLASSES
        or layout.across > 1
        or layout.patience < 1
        or len(data) < begin + 4 * layout.lanes
        or (len(data) - begin) % 2
    ):
        raise ParamGolfError("rans data of another length")
    reader = _Reader(np.frombuffer(data, "<u2", offset=begin).astype(np.int64), layout.lanes)
    moments, blocks = Moments(layout), np.empty(shape, np.int8)
    for block in blocks:
        fit, _ = moments.fit()
        _decode_block(reader, fit, layout, block)
        moments.add(block)
    reader.finish()
    whole = (blocks.transpose(0, 2, 1) if layout.across else blocks).ravel()
    places = np.frombuffer(data, "<u4", layout.outliers, HEADER.size)
    if (places >= size).any():
        raise ParamGolfError("rans data with an outlier elsewhere")
    whole[places] = np.frombuffer(data, np.int8, layout.outliers, HEADER.size + 4 * len(places))
    return whole.tobytes()


class _Reader:
    """The states of the lanes, and the words that fill them up."""

    def __init__(self, words: np.ndarray, lanes: int) -> None:
        self.words, self.place = words, 2 * lanes
        self.states = words[:lanes] << 16 | words[lanes : 2 * lanes]
        self.slots = tables()[1]

    def read(self, table: np.ndarray) -> np.ndarray:
        """Return a symbol of each lane, int64, by the lanes' tables."""
        slots = self.slots.take(table << BITS | self.states & 2**BITS - 1)
        states = (slots & 2**15 - 1) * (self.states >> BITS) + (slots >> 15 & 2**14 - 1)
        (low,) = (states < LOWEST).nonzero()
        if self.place + len(low) > len(self.words):
            raise ParamGolfError("rans data cut short")
        states[low] = states[low] << 16 | self.words[self.place : self.place + len(low)]
        self.place += len(low)
        self.states = states
        return slots >> 29

    def finish(self) -> None:
        """Refuse data that does not end here."""
        if self.place < len(self.words) or (self.states != LOWEST).any():
            raise ParamGolfError("damaged rans data, or data of another length")


def _decode_block(reader: _Reader, fit: Fit, layout: Layout, block: np.ndarray) -> None:
    """Fill a block, int8 [steps, lanes]."""
    weights, means = fit.weights, fit.constant
    if weights is not None:
        exact = np.zeros(block.shape)
        means = np.repeat(means[:, None], block.shape[1], 1).astype(np.float64)
    trellis, error = np.zeros((2, block.shape[1]), np.int64)
    for i, row in enumerate(block):
        if weights is not None and i % PANEL == 0:
            means[i : i + PANEL] += weights[i : i + PANEL, :i] @ exact[:i]
        mean = means[i].astype(np.int64)
        place = Place(mean, error, fit.classes[i], i, trellis & 1)
        table, whole = place.table(layout)
        integers = whole + reader.read(table)
        if layout.segment:
            halves, parity = integers, trellis & 1
            integers = 2 * halves + parity
            trellis = next_states(trellis, halves)
            if (i + 1) % layout.segment == 0:
                trellis = np.zeros_like(trellis)
        row[:] = integers  # of damaged data, whatever it makes
        error += magnitudes(integers, mean, fit.inverse[i])
        if weights is not None:
            exact[i] = row
            rest = slice(i + 1, i - i % PANEL + PANEL)
            means[rest] += weights[rest, i, None] * exact[i]


class Place(NamedTuple):
    """What is known before integers are decoded; arrays that broadcast, int64.

    `mean` is in 2^-12, `error` the sum of the lane's magnitudes at the `seen` steps before,
    `classes` that of the step's deviation, `parity` the trellis's.
    """

    mean: np.ndarray
    error: np.ndarray
    classes: np.ndarray
    seen: np.ndarray | int
    parity: np.ndarray

    def table(self, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
        """Return the tables of the symbols, and the whole numbers that those count from, int64."""
        weight = layout.patience + self.seen
        average = (self.error + TYPICAL * layout.patience) * (2**24 // weight) >> 24
        mean, classes = self.mean, self.classes + CLASSES
        if layout.segment:
            mean, classes = mean - (self.parity << UNIT) >> 1, classes - OCTAVE
        table = scaled_classes().take(np.minimum(average, 1023) + (classes << 10))
        eighths = mean + 2 ** (UNIT - 4) >> UNIT - 3
        return table | eighths & SHIFTS - 1, eighths >> 3


def magnitudes(integers: np.ndarray, mean: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Return 256 times how many deviations integers lie from their means, at most 2^20."""
    return np.minimum(np.abs((integers << UNIT) - mean) * inverse >> UNIT + 8, 2**20)

"""What the coder of quantized integers (rans) expects of each: an adaptive normal model.

Integers come as blocks of [rows, columns]; rows are decoded one after another. An integer z is
expected to be normal, with mean mu and deviation sigma:

    mu    = constant_i + sum over k < i of weights_ik z_k        (row i, the rows above it)
    sigma = d_i times how large this column's errors |z - mu| / d were so far

Weights, constants and d come from the blocks before: if C = K K^T is the covariance of rows over
columns (Cholesky) and d the diagonal of K, A = d K^-1 has ones on its diagonal, and A (z - m) has
independent entries of deviation d. So z_i = (A m)_i - sum over k < i of A_ik z_k, plus such an
entry. With P(k) = Phi((k + 1/2 - mu) / sigma) - Phi((k - 1/2 - mu) / sigma), Phi the normal
distribution, the frequencies of a table are M times P, of which 0.5 % belongs to twice the
deviation: trained weights have heavier tails than normal numbers.

Every platform must come to the same tables. All is whole numbers but for `predict` and `tables`,
whose results are rounded, and the encoder sees to it that none of `predict` lies near a half
(rans_writer).

Integers that a trellis chose (quant.trellis) have a parity that follows from those above; half of
each is coded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

PROB_BITS = 14  # M = 2^14: the frequencies of a table add up to it
# A table is made for a class of deviations and for one of MEANS positions of the mean between two
# whole numbers. Classes are an eighth of an octave apart, from a deviation of 1/4 to one of 59; the
# coarseness costs some 0.001 bits per integer.
MEANS, CLASSES, CLASSES_PER_OCTAVE = 8, 64, 8
FIRST_CLASS = -2 * CLASSES_PER_OCTAVE  # class 0 is the deviation 2^-2
# a column's own scale may move a class by CLASSES; beyond, tables are the first or last
CLASS_RANGE = CLASSES_PER_OCTAVE - CLASSES, 2 * CLASSES - 1
MEAN_BITS = 12  # means are whole numbers of 2^-12
SUPPORT = 5  # deviations from the mean within which every symbol has a frequency of at least 1
TAIL_SHARE = 0.005  # of a table, that belongs to twice the deviation
EXPECTED_MAGNITUDE = 204  # 256 E|z| of a standard normal z: 256 sqrt(2 / pi)
PRIOR_COLUMNS = 16  # columns that the first deviation counts for
PANEL = 32  # rows that are predicted by one product of matrices, from all rows before them
MARGIN = 1e-9  # the least distance to a half: far more than platforms differ by
# A trellis: with p the lowest bit of state z and h that of the integer's half, the next state is
# (z >> 1) XOR p a XOR h b, where a and b are half of Ungerboeck's parity checks of 256 states, 515
# and 362, octal (IEEE Trans. Inf. Theory 28, 1982).
STATES = 256
NEXT = np.array(
    [z >> 1 ^ z % 2 * (0o515 >> 1) ^ h * (0o362 >> 1) for z in range(STATES) for h in (0, 1)]
)
ROW_STEP = 2  # classes that a step of a row's own deviation is: a quarter of an octave
# Most of decoding is calls of numpy for one row each, so what can be is done in place, by numbers
# that are arrays already: to make an array of a number takes longer than to shift a row by it.
ONE, AVERAGE_SHIFT, HALF_SHIFT = map(np.array, (1, 24, PROB_BITS + 2))


# Given a row's first slots, of its tables, and the whole numbers that symbols count from, int64
# [columns] each, it returns the row's integers, or by a trellis their halves: the decoder reads
# them; the encoder knows them, and notes how they are coded.
Read = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Layout(NamedTuple):
    """How integers are coded, the header of a stream.

    Attributes:
        blocks: of integers, each [rows, columns], or [columns, rows] if `transposed`.
        rows: steps of the decoder in a block.
        columns: states, decoded at once.
        shrinkage: columns that must have been seen before what their covariance says counts for
            half: it is multiplied by n / (n + shrinkage). 0: rows are not predicted.
        scale_prior: rows that a column's own errors must outweigh: the deviation is multiplied by
            the mean of its errors and of `scale_prior` errors of the expected size.
        trellis: 1 where a trellis chose the integers of each column of a block.
        transposed: 1 where rows of the stored matrix are columns here.
        first_class: the class of the deviation before anything is known.
        row_bytes: of the deviations of rows that are not predicted, in steps of ROW_STEP classes
            from the first: int8 [blocks, rows], compressed by brotli.
        outliers: integers beyond the support of their table, which are kept beside.
    """

    blocks: int
    rows: int
    columns: int
    shrinkage: int
    scale_prior: int
    trellis: int
    transposed: int
    first_class: int
    row_bytes: int
    outliers: int


class Prediction(NamedTuple):
    """What is expected of a block's rows; whole numbers.

    Attributes:
        weights: [rows, rows] of the rows above each row, in 2^-12; None: they say nothing.
        constant: [rows], in 2^-12.
        classes: [rows], of the deviations d.
        inverse: [rows], 2^16 / d.
    """

    weights: np.ndarray | None
    constant: np.ndarray
    classes: np.ndarray
    inverse: np.ndarray


class Moments:
    """Sums over the columns of the blocks so far: whole numbers, the same in any order of adding.

    Products of int8 add up exactly in float64 until there are 2^39 columns.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout, self.count = layout, 0
        size = layout.rows if layout.shrinkage else 0
        self.sums, self.products = np.zeros(size), np.zeros((size, size))

    def add(self, block: np.ndarray) -> None:
        """Add a block, int8 [rows, columns]."""
        if self.layout.shrinkage:
            exact = block.astype(np.float64)
            self.count += exact.shape[1]
            self.sums += exact.sum(1)
            self.products += exact @ exact.T

    def predict(self, row_steps: np.ndarray) -> tuple[Prediction, float]:
        """Return what is expected of the next block, and how near to a half anything was.

        `row_steps` int8 [rows] are those of Layout.row_bytes, where rows are not predicted.
        """
        if not self.layout.shrinkage:
            classes = self.layout.first_class + ROW_STEP * row_steps.astype(np.int64)
            classes = classes.clip(*CLASS_RANGE)
            return Prediction(None, 0 * classes, classes, inverses()[classes - CLASS_RANGE[0]]), 1.0
        first = 2.0 ** ((self.layout.first_class + FIRST_CLASS) / CLASSES_PER_OCTAVE)
        count = self.count
        mean = self.sums / (count + PRIOR_COLUMNS)
        centered = self.sums / max(count, 1)
        covariance = self.products / max(count, 1) - np.outer(centered, centered)
        variance = covariance.diagonal() * count + first**2 * PRIOR_COLUMNS
        covariance *= count / (count + self.layout.shrinkage)
        np.fill_diagonal(covariance, variance / (count + PRIOR_COLUMNS))
        lower = np.linalg.cholesky(covariance)  # K
        deviation = lower.diagonal()  # d
        whitening = deviation[:, None] * np.linalg.inv(lower)  # A
        exact = (
            np.tril(-whitening, -1) * 2**MEAN_BITS,
            whitening @ mean * 2**MEAN_BITS,
            CLASSES_PER_OCTAVE * np.log2(deviation) - FIRST_CLASS,
            2**16 / deviation,
        )
        near = min(float(np.abs(x - np.floor(x) - 0.5).min()) for x in exact)
        weights, *rest = (np.rint(x) for x in exact)
        constant, classes, inverse = (x.astype(np.int64) for x in rest)
        return Prediction(weights, constant, classes.clip(*CLASS_RANGE), inverse), near


@functools.cache
def tables() -> np.ndarray:
    """Return where symbols begin, int64 [tables, 257].

    Table class x MEANS + i is that of a deviation and of a mean i / MEANS above a whole number;
    c_s, the start of symbol s in -128..127, is at s + 128.
    """
    starts = np.zeros((CLASSES * MEANS, 257), np.int64)
    for row in range(len(starts)):
        deviation = 2.0 ** ((row // MEANS + FIRST_CLASS) / CLASSES_PER_OCTAVE)
        mean, scale = row % MEANS / MEANS, 1 / (deviation * math.sqrt(2))
        low, high = (
            max(0, min(256, round(mean + 128 + side * (SUPPORT * deviation + 1))))
            for side in (-1, 1)
        )
        narrow, wide = (
            np.array([math.erf((i - 128.5 - mean) * scale / n) for i in range(low, high + 1)])
            for n in (1, 2)
        )
        mixed = np.diff((1 - TAIL_SHARE) * narrow + TAIL_SHARE * wide) / 2
        counts = np.maximum(1, np.rint(mixed / mixed.sum() * 2**PROB_BITS)).astype(np.int64)
        counts[counts.argmax()] += 2**PROB_BITS - counts.sum()  # rounding: the largest takes it up
        starts[row, low + 1 : high + 1] = counts.cumsum()
        starts[row, high + 1 :] = 2**PROB_BITS
    return starts


@functools.cache
def meanings() -> np.ndarray:
    """Return what each slot of all tables stands for, int64, flat.

    It is all that decoding needs in one number, s << 29 | (slot - c_s) << 15 | f_s: look-ups are
    most of the work.
    """
    starts = tables()
    frequency = np.diff(starts)
    symbols = (np.arange(-128, 128) << 29) - (starts[:, :-1] << 15) + frequency
    found: np.ndarray = symbols.ravel().repeat(frequency.ravel()).reshape(-1, 2**PROB_BITS)
    found += np.arange(2**PROB_BITS) << 15
    return found.ravel()


@functools.cache
def scaled_classes() -> np.ndarray:
    """Return the first slot of each class scaled by a column's mean error, int64 [classes, 1024].

    Classes count from -CLASSES; mean errors are 0..1023, in 1 / 256 of the row's deviation.
    EXPECTED_MAGNITUDE leaves the class as it is.
    """
    errors = np.maximum(np.arange(1024), 1)
    change = np.rint(CLASSES_PER_OCTAVE * np.log2(errors / EXPECTED_MAGNITUDE)).astype(np.int64)
    classes = np.arange(-CLASSES, 2 * CLASSES)[:, None] + change
    scaled: np.ndarray = classes.clip(0, CLASSES - 1) * MEANS << PROB_BITS
    return scaled


@functools.cache
def inverses() -> np.ndarray:
    """Return 2^16 / d of the deviations d of all classes in CLASS_RANGE, int64."""
    octaves = (np.arange(CLASS_RANGE[0], CLASS_RANGE[1] + 1) + FIRST_CLASS) / CLASSES_PER_OCTAVE
    exact: np.ndarray = np.rint(2.0 ** (16 - octaves)).astype(np.int64)
    return exact


def next_states(states: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Return a trellis's states after integers 2 x halves + (states & 1)."""
    following: np.ndarray = NEXT.take(states << ONE | halves & ONE)
    return following


def fill(block: np.ndarray, read: Read, prediction: Prediction, layout: Layout) -> None:
    """Fill a block, int8 [rows, columns], row by row, with what `read` returns.

    The rows of a panel are predicted from all rows before it by one product, and from the rows
    within it by an outer product each; all terms are whole numbers below 2^53, so that their order
    does not matter. Rows that are not predicted have the mean 0.
    """
    weights, trellis = prediction.weights, layout.trellis
    if weights is not None:
        exact = np.zeros(block.shape)
        means = np.repeat(prediction.constant[:, None], block.shape[1], 1).astype(np.float64)
    state, parity = np.zeros((2, block.shape[1]), np.int64)
    error = state + EXPECTED_MAGNITUDE * layout.scale_prior
    reciprocals = 2**24 // (layout.scale_prior + np.arange(len(block)))[:, None]
    classes = prediction.classes + CLASSES - CLASSES_PER_OCTAVE * trellis
    shift = MEAN_BITS - 3 + trellis  # from means to eighths; of their halves, by a trellis
    for i, row in enumerate(block):
        average = error * reciprocals[i]
        average >>= AVERAGE_SHIFT
        first = scaled_classes()[classes[i]].take(average, mode="clip")
        whole = -parity
        if weights is not None:
            if i % PANEL == 0:
                means[i : i + PANEL] += weights[i : i + PANEL, :i] @ exact[:i]
            mean = means[i].astype(np.int64)
            eighths = (mean + (1 << shift - 1) >> shift) - (parity << 2)
            first += (eighths & MEANS - 1) << PROB_BITS
            whole = eighths >> 3
        elif trellis:
            first += parity << HALF_SHIFT
        integers = read(first, whole)
        if trellis:
            state = next_states(state, integers)
            integers += integers
            integers += parity
            parity = state & ONE
        row[:] = integers  # of damaged data, whatever it makes
        if weights is None:
            error += errors_of(prediction.inverse.item(i)).take(integers, mode="wrap")
            continue
        error += magnitudes(integers, mean, prediction.inverse[i])
        exact[i] = row
        rest = slice(i + 1, i - i % PANEL + PANEL)
        means[rest] += weights[rest, i, None] * exact[i]


@functools.cache
def errors_of(inverse: int) -> np.ndarray:
    """Return the `magnitudes` of integers -256..255 and mean 0, int64 [512], that of z at z."""
    return magnitudes((np.arange(512) + 256) % 512 - 256, 0, inverse)


def magnitudes(
    integers: np.ndarray, mean: np.ndarray | int, inverse: np.ndarray | int
) -> np.ndarray:
    """Return 256 |z - mu| / d of integers z, rounded down, at most 2^20."""
    exact = np.abs((integers << MEAN_BITS) - mean) * inverse >> MEAN_BITS + 8
    bounded: np.ndarray = np.minimum(exact, 2**20)
    return bounded

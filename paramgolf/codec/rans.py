"""The decoder of quantized integers: rANS (arXiv 1311.2540).

A state x holds what was coded; L = 2^16 <= x < 2^32. Symbols s of a table have frequencies f_s,
which add up to M = 2^14, and start at c_s, the sum of the frequencies before. To decode a symbol,

    slot = x mod M;  s is the symbol with c_s <= slot < c_s + f_s
    x <- f_s (x div M) + slot - c_s
    if x < L:  x <- 2^16 x + the next word of 16 bits        (renormalization)

and to encode it the same backwards: if x >= 2^18 f_s, write its lower 16 bits and drop them; then
x <- M (x div f_s) + c_s + x mod f_s. A symbol takes log2(M / f_s) bits. What is encoded last is
decoded first, so the encoder begins at the end. Each column has a state of its own, so that all
columns are decoded at once, in numpy; all states begin (end, for the decoder) at L, and share one
sequence of words. Which table codes an integer follows from those before it: rans_model. See
docs/container.md.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from paramgolf.codec.codecs import decompress
from paramgolf.codec.rans_model import (
    CLASSES,
    PRIOR_COLUMNS,
    PROB_BITS,
    Layout,
    Moments,
    fill,
    meanings,
)
from paramgolf.errors import ParamGolfError

LOWER_BOUND = 2**16  # L: states lie in L..2^32
HEADER = struct.Struct("<IIIIHBBBII")  # of a stream: Layout
MOST_ROWS = 2**11  # that are predicted from each other: memory grows with their square
MOST_PREDICTED = 2**22  # integers of a block whose rows are predicted
# what decoding takes, in units of an integer of a long row: a row by itself, and what is computed
# of predicted rows, whose multiplications are many to a unit
ROW_WORK, MULTIPLICATIONS = 2000, 64
# for `_Reader.read`: arrays, as in rans_model
WORD_SHIFT, PROB_SHIFT, OFFSET_SHIFT, SLOT, FREQUENCY, LOWEST = map(
    np.array, (16, PROB_BITS, 15, 2**PROB_BITS - 1, 2**15 - 1, LOWER_BOUND)
)


def read_layout(data: bytes) -> Layout:
    """Return the header of a stream, whose values are still to be checked."""
    if len(data) < HEADER.size:
        raise ParamGolfError("rans data cut short")
    return Layout(*HEADER.unpack_from(data))


def layout_work(layout: Layout) -> int:
    """Return what `decode` will take, in units of some 10 ns of one core.

    A Cholesky factor, its inverse and the sums of products take about rows^3 and rows^2 columns
    multiplications per block.
    """
    blocks, rows, columns = layout[:3]
    each = rows * (ROW_WORK + columns)
    if layout.shrinkage:
        each += rows**2 * (rows + columns) // MULTIPLICATIONS
    return blocks * each


def decode(data: bytes, size: int) -> bytes:
    """Return the `size` int8 that `data` stands for; whatever is wrong is a ParamGolfError."""
    layout = read_layout(data)
    shape = layout[:3]
    steps_at = HEADER.size + 5 * layout.outliers
    begin = steps_at + layout.row_bytes
    if (
        min(shape) < 1
        or math.prod(shape) != size
        or 0 < layout.shrinkage <= PRIOR_COLUMNS
        or (layout.shrinkage and not predictable(layout.rows, layout.columns))
        or layout.first_class >= CLASSES
        or max(layout.transposed, layout.trellis) > 1
        or layout.scale_prior < 1
        or len(data) < begin + 4 * layout.columns
        or (len(data) - begin) % 2
    ):
        raise ParamGolfError("rans data of another length")
    count = layout.blocks * layout.rows  # none are stored where rows are predicted
    steps = decompress("brotli", data[steps_at:begin], count) if layout.row_bytes else bytes(count)
    row_steps = np.frombuffer(steps, np.int8).reshape(shape[:2])
    reader = _Reader(np.frombuffer(data, "<u2", offset=begin), layout.columns)
    moments, blocks = Moments(layout), np.empty(shape, np.int8)
    for block, own_steps in zip(blocks, row_steps, strict=True):
        prediction, _ = moments.predict(own_steps)
        fill(block, reader.read, prediction, layout)
        moments.add(block)
    reader.finish()
    whole: np.ndarray = (blocks.transpose(0, 2, 1) if layout.transposed else blocks).ravel()
    indices = np.frombuffer(data, "<u4", layout.outliers, HEADER.size)
    if (indices >= size).any():
        raise ParamGolfError("rans data with an outlier elsewhere")
    whole[indices] = np.frombuffer(data, np.int8, layout.outliers, HEADER.size + 4 * len(indices))
    return whole.tobytes()


def predictable(rows: int, columns: int) -> bool:
    """Tell whether rows of a block may be predicted from each other: it takes memory."""
    return rows <= MOST_ROWS and rows * columns <= MOST_PREDICTED


class _Reader:
    """The states of the columns, and the words that fill them up."""

    def __init__(self, words: np.ndarray, columns: int) -> None:
        self.words, self.read_words = words, 2 * columns
        self.states = words[:columns].astype(np.int64) << 16 | words[columns : 2 * columns]
        self.slots = meanings()

    def read(self, first: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """Return what `Read` says."""
        states = self.states
        slots: np.ndarray = self.slots.take(first + (states & SLOT), mode="clip")
        states >>= PROB_SHIFT
        states *= slots & FREQUENCY
        slots >>= OFFSET_SHIFT
        states += slots & SLOT
        (low,) = (states < LOWEST).nonzero()
        end = self.read_words + len(low)
        if end > len(self.words):
            raise ParamGolfError("rans data cut short")
        # one word is enough: a state of at least L lost at most log2(M) = 14 of its bits
        filled = states.take(low)
        filled <<= WORD_SHIFT
        filled |= self.words[self.read_words : end]
        states[low] = filled
        self.read_words = end
        slots >>= PROB_SHIFT
        slots += whole
        return slots

    def finish(self) -> None:
        """Refuse data that does not end here: what was encoded began at L, with no word."""
        if self.read_words < len(self.words) or (self.states != LOWER_BOUND).any():
            raise ParamGolfError("damaged rans data, or data of another length")

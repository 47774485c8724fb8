"""The encoder of paramgolf.codec.rans: it predicts as the decoder will, and codes backwards.

A plan is made for each layout that may be best: what the decoder will expect of every integer, from
which the bits follow. The cheapest is then coded.

`python -m paramgolf.codec.rans_writer SHAPE` encodes what it reads, for a process that has several.
"""

from __future__ import annotations

import functools
import math
import signal
import sys

import brotli
import numpy as np

from paramgolf.codec.rans import HEADER, LOWER_BOUND, predictable
from paramgolf.codec.rans_model import (
    CLASSES,
    CLASSES_PER_OCTAVE,
    FIRST_CLASS,
    MARGIN,
    PROB_BITS,
    ROW_STEP,
    Layout,
    Moments,
    fill,
    next_states,
    tables,
)
from paramgolf.process import end_with_parent

SHRINKAGE = 4000  # of a layout that predicts rows
SCALE_PRIORS = (64, 16, 256, 1024)
TRIES = 8
TALLEST = 1024  # rows of a stored matrix that become the columns of one block
COLUMN_BITS = 24  # that a column costs: 32 of its first state, less what they tell on average
FEW_COLUMNS = 512  # fewer save bytes, 0.02 % with half as many, and take as much longer to decode
OUTLIER_BITS = 40  # its index and its value
STEP_NATS = 2  # that a row's step other than 0 takes, about
LEAST_BLOCKS, LEAST_COLUMNS = 4, 4  # where rows are predicted; columns are counted in rows


def encodable(shape: tuple[int, ...]) -> bool:
    """Whether integers of that shape can be coded: a matrix, or a stack of them."""
    return len(shape) in (2, 3) and min(shape) > 0


def encode(raw: bytes, shape: tuple[int, ...]) -> bytes:
    """Return the data of int8 values `raw` of a shape that is `encodable`.

    The layout is the one that promises the fewest bytes; what a trellis chose is recognized.
    """
    values = np.frombuffer(raw, np.int8).reshape((1, *shape)[-3:])
    layouts = _layouts(values, trellis=follows_trellis(values))
    prior = _best_scale_prior(values, layouts[0])
    plans = (CodingPlan(values, layout._replace(scale_prior=prior)) for layout in layouts)
    return min(plans, key=lambda plan: plan.bits).encode()


def _best_scale_prior(values: np.ndarray, layout: Layout) -> int:
    """Return the `scale_prior` that suits the first blocks best."""
    some = values[: len(values) // LEAST_BLOCKS]
    if layout.transposed or not len(some):
        return SCALE_PRIORS[0]
    layout = layout._replace(blocks=len(some))
    plans = [CodingPlan(some, layout._replace(scale_prior=prior)) for prior in SCALE_PRIORS]
    return min(plans, key=lambda plan: plan.bits).layout.scale_prior


def follows_trellis(values: np.ndarray) -> bool:
    """Tell whether the columns of all blocks [blocks, rows, columns] have a trellis's parities.

    Integers that no trellis chose have them in few rows by chance alone.
    """
    states = np.zeros((len(values), values.shape[2]), np.int64)
    for row in values.transpose(1, 0, 2).astype(np.int64):
        if ((row - states) & 1).any():
            return False
        states = next_states(states, row >> 1)
    return True


def _layouts(values: np.ndarray, *, trellis: bool) -> list[Layout]:
    """Return the layouts worth trying for integers [blocks, rows, columns]."""
    blocks, rows, columns = values.shape
    transposed = 0
    height = max(n for n in range(1, TALLEST + 1) if rows % n == 0)
    if blocks == 1 and not trellis and rows >= LEAST_BLOCKS * height:
        # one tall matrix, such as the embedding: rows of a token each are like each other, so that
        # many of them make a block, and their entries are predicted from one another
        blocks, rows, columns, transposed = rows // height, columns, height, 1
    deviation = max(float(values.std(dtype=np.float64)), 0.25)
    first_class = min(round(CLASSES_PER_OCTAVE * math.log2(deviation) - FIRST_CLASS), CLASSES - 1)
    plain = Layout(
        blocks=blocks,
        rows=rows,
        columns=columns,
        shrinkage=0,
        scale_prior=SCALE_PRIORS[0],
        trellis=int(trellis),
        transposed=transposed,
        first_class=first_class,
        row_bytes=0,
        outliers=0,
    )
    layouts = [plain]
    if trellis:  # predicted rows took 1 to 7 % more bytes in best, and most of the time
        return layouts
    if not transposed and columns % FEW_COLUMNS == 0 and columns > FEW_COLUMNS:
        # where columns are alike, a state for several saves bytes: their rows follow each other
        longer = rows * columns // FEW_COLUMNS
        layouts.append(plain._replace(rows=longer, columns=FEW_COLUMNS))
    enough = blocks >= LEAST_BLOCKS and blocks * columns >= LEAST_COLUMNS * rows
    if enough and predictable(rows, columns):
        layouts.append(plain._replace(shrinkage=SHRINKAGE))
    return layouts


class CodingPlan:
    """A layout, and for each integer the table and the symbol that code it."""

    def __init__(self, values: np.ndarray, layout: Layout) -> None:
        shape = layout.blocks, layout.columns, layout.rows
        shaped = values.reshape(shape).transpose(0, 2, 1) if layout.transposed else values
        self.wanted = shaped.reshape(layout[:3])
        self.shaped = np.empty(layout[:3], np.int8)  # outliers brought in
        self.row_steps, packed = _row_steps(self.wanted, layout)
        self.packed_steps = packed
        self.layout = layout._replace(row_bytes=len(packed))
        self._halves = self.wanted.reshape(-1, layout.columns) >> layout.trellis
        self.tables = np.empty(self._halves.shape, np.int16)
        self.symbols = np.empty(self._halves.shape, np.int16)
        self._follow()
        starts, _ = tables()
        counts = np.bincount(_slot(self.tables, self.symbols).ravel(), minlength=starts.size)
        frequencies = np.maximum(np.diff(starts, append=2**PROB_BITS), 1)
        cost = (counts.reshape(starts.shape) * (PROB_BITS - np.log2(frequencies))).sum()
        outliers = np.count_nonzero(self.shaped != self.wanted)
        self.bits = float(cost) + COLUMN_BITS * layout.columns + OUTLIER_BITS * outliers
        self.bits += 8 * len(packed)

    def _follow(self) -> None:
        """Go the decoder's way through all blocks, under a shrinkage that no rounding can upset."""
        shrinkage, more = self.layout.shrinkage, 1 if self.layout.shrinkage else 0
        for i in range(TRIES):
            self.layout = self.layout._replace(shrinkage=shrinkage + more * i)
            moments, nearest = Moments(self.layout), 1.0
            self._next = 0
            for block, row_steps in zip(self.shaped, self.row_steps, strict=True):
                prediction, near = moments.predict(row_steps)
                nearest = min(nearest, near)
                fill(block, self._note, prediction, self.layout)
                moments.add(block)
            if nearest > MARGIN:
                return
        raise AssertionError("every shrinkage leads to numbers near a half")

    def _note(self, first: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """Note the next row's tables and symbols; return its integers, as the decoder reads them.

        What lies beyond the support of its table is brought to its edge: an outlier.
        """
        row, self._next = self._next, self._next + 1
        table = first >> PROB_BITS
        symbols = self._halves[row] - whole
        low, high = _supports()
        inside: np.ndarray = symbols.clip(low[table], high[table])
        if self.layout.trellis:  # it goes by the parity of the half, which must stay
            inside += (symbols - inside & 1) * np.where(symbols > 0, -1, 1)
        self.tables[row], self.symbols[row] = table, inside + 128
        inside += whole
        return inside

    def encode(self) -> bytes:
        """Return the header, the outliers, the states that decoding begins with, and the words."""
        layout = self.layout
        starts = tables()[0].ravel()
        state, chunks = np.full(layout.columns, LOWER_BOUND, np.int64), []
        for row in _slot(self.tables, self.symbols)[::-1]:
            start = starts[row]
            frequency = starts[row + 1] - start
            # what would leave 2^32 writes its low word first: x >= f L 2^16 / M
            high = np.flatnonzero(state >= frequency << 32 - PROB_BITS)
            chunks.append(state[high] & 0xFFFF)
            state[high] >>= 16
            state = (state // frequency << PROB_BITS) + state % frequency + start
        words = np.concatenate([state >> 16, state & 0xFFFF, *chunks[::-1]]).astype("<u2")
        indices, values = self._outliers()
        header = HEADER.pack(*layout._replace(outliers=len(indices)))
        parts = header, indices.tobytes(), values.tobytes(), self.packed_steps, words.tobytes()
        return b"".join(parts)

    def _outliers(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where, in the order of the raw values, outliers are, uint32, and what, int8."""
        wanted, coded = (
            x.transpose(0, 2, 1).ravel() if self.layout.transposed else x.ravel()
            for x in (self.wanted, self.shaped)
        )
        indices = np.flatnonzero(wanted != coded)
        return indices.astype("<u4"), wanted[indices]


def _row_steps(blocks: np.ndarray, layout: Layout) -> tuple[np.ndarray, bytes]:
    """Return the steps of rows, int8 [blocks, rows], and their bytes; none of predicted rows."""
    if layout.shrinkage:
        return np.zeros(layout[:2], np.int8), b""
    deviation = 2.0 ** ((layout.first_class + FIRST_CLASS) / CLASSES_PER_OCTAVE)
    rms = np.sqrt(np.square(blocks, dtype=np.float64).mean(2)).clip(deviation / 16)
    steps = np.rint(CLASSES_PER_OCTAVE / ROW_STEP * np.log2(rms / deviation)).astype(np.int8)
    # n integers coded as if e^x times as large take some n x^2 nats more, and a step takes as much
    steps[layout.columns * np.log(rms / deviation) ** 2 < STEP_NATS] = 0
    return steps, brotli.compress(steps.tobytes(), quality=11) if steps.any() else b""


def _slot(table: np.ndarray, symbol: np.ndarray) -> np.ndarray:
    """Return where, in the flat starts of all tables, a symbol + 128 of a table is."""
    flat: np.ndarray = table * np.int64(257) + symbol
    return flat


@functools.cache
def _supports() -> tuple[np.ndarray, np.ndarray]:
    """Return each table's first and last symbol that can be coded."""
    present = np.diff(tables()[0]) > 0
    return present.argmax(1) - 128, 127 - present[:, ::-1].argmax(1)


def main() -> None:
    """Encode integers of the shape on the command line, from standard input to standard output."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    data = encode(sys.stdin.buffer.read(), tuple(map(int, sys.argv[1:])))
    sys.stdout.buffer.write(data)


if __name__ == "__main__":
    main()

"""The encoder of paramgolf.codec.rans: it predicts as the decoder will, and codes backwards.

A plan is made for each layout that may be best: what the decoder will expect of every integer, from
which the size follows. The cheapest is then coded.

`python -m paramgolf.codec.rans_writer SHAPE` encodes what it reads, for a process that has several.
"""

from __future__ import annotations

import functools
import math
import sys

import brotli
import numpy as np

from paramgolf.apart import serve_parent
from paramgolf.codec.rans import HEADER, LOWER_BOUND, predictable
from paramgolf.codec.rans_model import (
    AVERAGE_SHIFT,
    CLASS_RANGE,
    CLASSES,
    CLASSES_PER_OCTAVE,
    EXPECTED_MAGNITUDE,
    FIRST_CLASS,
    MARGIN,
    PROB_BITS,
    ROW_STEP,
    Layout,
    Moments,
    errors_of,
    fill,
    inverses,
    next_states,
    scaled_classes,
    tables,
)

SHRINKAGE = 4000  # of a layout that predicts rows
SCALE_PRIORS = (4, 16, 64, 256, 1024)
SAMPLE = 16  # of so many columns one tells which of them is best, within 0.02 % of the bytes
TRIES = 8
AT_ONCE = 2**17  # integers that are planned together: few enough for a core's cache
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
    """Return the `scale_prior` that suits some columns best, of a layout without predicted rows.

    Such columns do not depend on each other.
    """
    if layout.transposed:
        some = values[:, :: math.gcd(SAMPLE, layout.columns)]
        columns = some.shape[1] // layout.blocks
    else:
        some = values[:, :, ::SAMPLE]
        columns = some.shape[2]
    layout = layout._replace(columns=columns)
    plans = [CodingPlan(some, layout._replace(scale_prior=prior)) for prior in SCALE_PRIORS]
    return min(plans, key=lambda plan: plan.bits).layout.scale_prior


def follows_trellis(values: np.ndarray) -> bool:
    """Tell whether the columns of all blocks [blocks, rows, columns] have a trellis's parities.

    Integers that no trellis chose have them in few rows by chance alone.
    """
    states = np.zeros((len(values), values.shape[2]), np.int64)
    for row in values.transpose(1, 0, 2):
        if ((row ^ states) & 1).any():
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
    """A layout, and for each integer the place, in all tables, of the symbol that codes it."""

    def __init__(self, values: np.ndarray, layout: Layout) -> None:
        shape = layout.blocks, layout.columns, layout.rows
        shaped = values.reshape(shape).transpose(0, 2, 1) if layout.transposed else values
        self.wanted = np.ascontiguousarray(shaped.reshape(layout[:3]))
        self.shaped = self.wanted.copy()  # outliers brought in
        self.row_steps, packed = _row_steps(self.wanted, layout)
        self.packed_steps = packed
        self.layout = layout._replace(row_bytes=len(packed))
        self.places = np.empty(layout[:3], np.int32)
        if layout.shrinkage:
            self._follow()
        else:
            for block in range(layout.blocks):
                self._foresee(block)
        counts = np.bincount(self.places.ravel(), minlength=tables().size)
        cost = (counts * (PROB_BITS - np.log2(np.maximum(_frequencies(), 1)))).sum()
        outliers = np.count_nonzero(self.shaped != self.wanted)
        self.bits = float(cost) + COLUMN_BITS * layout.columns + OUTLIER_BITS * outliers
        self.bits += 8 * len(packed)

    def _foresee(self, block: int) -> None:
        """Plan a block whose rows are not predicted, some columns at once, as `fill` goes through.

        What is expected of an integer follows from those above it, which are known but for
        outliers: columns are planned again with what these became, until they stay as they are.
        """
        layout, wanted, shaped = self.layout, self.wanted[block], self.shaped[block]
        prediction, _ = Moments(layout).predict(self.row_steps[block])
        own = prediction.classes[:, None] - CLASS_RANGE[0]
        classes = prediction.classes[:, None] + CLASSES - CLASSES_PER_OCTAVE * layout.trellis
        reciprocals = 2**24 // (layout.scale_prior + np.arange(layout.rows))[:, None]
        parts = min(-(-wanted.size // AT_ONCE), layout.columns)
        todo = np.array_split(np.arange(layout.columns), parts)
        while todo:
            columns = todo.pop()
            integers, before = wanted[:, columns], shaped[:, columns]
            error = _errors()[own, before]
            above = error.cumsum(0) - error + EXPECTED_MAGNITUDE * layout.scale_prior
            average = above * reciprocals >> AVERAGE_SHIFT
            parity = integers & layout.trellis
            first = scaled_classes()[classes, average.clip(max=1023)]
            table = (first >> PROB_BITS) + 4 * parity
            symbols = (integers >> layout.trellis) + parity
            places = _place(table, symbols)
            outside = (_frequencies()[places] == 0).nonzero()
            change = _inside(table[outside], symbols[outside], layout) - symbols[outside]
            places[outside] += change
            integers[outside] += change << layout.trellis
            self.places[block][:, columns], shaped[:, columns] = places, integers
            changed = (integers != before).any(0)
            if changed.any():
                todo.append(columns[changed])

    def _follow(self) -> None:
        """Go the decoder's way through all blocks, under a shrinkage that no rounding can upset."""
        shrinkage = self.layout.shrinkage
        for i in range(TRIES):
            self.layout = self.layout._replace(shrinkage=shrinkage + i)
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
        """Note the next row's symbols; return its integers, as the decoder reads them.

        What lies beyond the support of its table is brought to its edge: an outlier.
        """
        row = self._next
        self._next += 1
        halves = self.wanted.reshape(-1, self.layout.columns)[row] >> self.layout.trellis
        table = first >> PROB_BITS
        inside = _inside(table, halves - whole, self.layout)
        self.places.reshape(-1, self.layout.columns)[row] = _place(table, inside)
        inside += whole
        return inside

    def encode(self) -> bytes:
        """Return the header, the outliers, the states that decoding begins with, and the words."""
        layout = self.layout
        starts, frequencies = tables().ravel(), _frequencies()
        state, chunks = np.full(layout.columns, LOWER_BOUND, np.int64), []
        for row in self.places.reshape(-1, layout.columns)[::-1]:
            frequency = frequencies.take(row)
            # what would leave 2^32 writes its low word first: x >= f L 2^16 / M
            (high,) = (state >= frequency << 32 - PROB_BITS).nonzero()
            full = state.take(high)
            chunks.append(full & 0xFFFF)
            state[high] = full >> 16
            quotient = state // frequency
            state += quotient * (2**PROB_BITS - frequency)  # M (x div f) + x mod f
            state += starts.take(row)
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
    return steps, _packed(steps.tobytes()) if steps.any() else b""


@functools.lru_cache(1)  # plans that differ in the prior have the same
def _packed(steps: bytes) -> bytes:
    data: bytes = brotli.compress(steps, quality=11)
    return data


def _place(table: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """Return where symbols -128..127 of tables are among all, as `tables` has them, flat."""
    flat: np.ndarray = table * np.int64(257) + symbols
    flat += 128
    return flat


def _inside(table: np.ndarray, symbols: np.ndarray, layout: Layout) -> np.ndarray:
    """Return the nearest symbols of tables that can be coded.

    A trellis goes by the lowest bit of a symbol, which must stay.
    """
    low, high = _supports()
    inside: np.ndarray = symbols.clip(low[table], high[table])
    if layout.trellis:
        inside += (symbols - inside & 1) * np.where(symbols > 0, -1, 1)
    return inside


@functools.cache
def _errors() -> np.ndarray:
    """Return `errors_of` integers for each class of CLASS_RANGE, int64 [classes, 512]."""
    return np.stack([errors_of(inverse) for inverse in inverses().tolist()])


@functools.cache
def _frequencies() -> np.ndarray:
    """Return the frequencies of all tables' symbols, by their places; 0 cannot be coded."""
    return np.diff(tables(), append=2**PROB_BITS).ravel()


@functools.cache
def _supports() -> tuple[np.ndarray, np.ndarray]:
    """Return each table's first and last symbol that can be coded."""
    present = np.diff(tables()) > 0
    return present.argmax(1) - 128, 127 - present[:, ::-1].argmax(1)


def main() -> None:
    """Encode integers of the shape on the command line, from standard input to standard output."""
    serve_parent()
    data = encode(sys.stdin.buffer.read(), tuple(map(int, sys.argv[1:])))
    sys.stdout.buffer.write(data)


if __name__ == "__main__":
    main()

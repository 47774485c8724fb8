"""The encoder of paramgolf.codec.rans: it takes the steps in reverse."""

from __future__ import annotations

import functools
import math

import numpy as np

from paramgolf.codec.rans import (
    BITS,
    CLASSES,
    HEADER,
    LOWEST,
    MARGIN,
    MOST_STEPS,
    OCTAVE,
    SMALLEST,
    Fit,
    Layout,
    Moments,
    Place,
    magnitudes,
    next_states,
    tables,
)

CAUTION = 4000  # of a layout that predicts steps
PATIENCES = (64, 16, 256, 1024)
SEGMENTS = (64, 32, 16, 8, 4)
TRIES = 8
AT_ONCE = 128  # lanes: what is computed of them stays in the processor's cache
MOST_LANES = 1024  # of a block of rows
LANE_BITS = 24  # that a lane costs: 32 to begin with, less what they tell on average
FEW_LANES = 512  # fewer save bytes, 0.02 % with half as many, and take as much longer to decode
LEAST_BLOCKS, LEAST_LANES = 4, 4  # where steps are predicted; lanes are counted in steps


def encodable(shape: tuple[int, ...]) -> bool:
    """Whether integers of that shape can be coded: a matrix, or a stack of them."""
    return len(shape) in (2, 3) and min(shape) > 0


def encode(raw: bytes, shape: tuple[int, ...]) -> bytes:
    """Return the data of int8 values `raw` of a shape that is `encodable`.

    The layout is the one that promises the fewest bytes; what a trellis chose is recognised.
    """
    values = np.frombuffer(raw, np.int8).reshape((1, *shape)[-3:])
    segment = find_segment(values)
    layouts = _layouts(values, segment)
    patience = _best_patience(values, layouts[0])
    plans = (Plan(values, one._replace(patience=patience)) for one in layouts)
    return min(plans, key=lambda plan: plan.bits).encode()


def _best_patience(values: np.ndarray, layout: Layout) -> int:
    """Return the patience that suits the first blocks best."""
    some = values[: len(values) // LEAST_BLOCKS]
    if layout.across or not len(some):
        return PATIENCES[0]
    layout = layout._replace(blocks=len(some))
    plans = [Plan(some, layout._replace(patience=patience)) for patience in PATIENCES]
    return min(plans, key=lambda plan: plan.bits).layout.patience


def find_segment(values: np.ndarray) -> int:
    """Return the rows of a trellis's segments [blocks, rows, columns], or 0 where there is none.

    Integers that no trellis chose keep its parities for four rows by chance alone.
    """
    rows = values.shape[1]
    for segment in (s for s in SEGMENTS if rows % s == 0):
        runs = values.reshape(-1, segment, values.shape[2]).transpose(1, 0, 2).astype(np.int64)
        states = np.zeros(runs.shape[1:], np.int64)
        for row in runs:
            if ((row - states) & 1).any():
                break
            states = next_states(states, row >> 1)
        else:
            return segment
    return 0


def _layouts(values: np.ndarray, segment: int) -> list[Layout]:
    """Return the layouts worth trying: rows as steps, or columns where one matrix is tall."""
    blocks, steps, lanes = values.shape
    across = 0
    height = max(n for n in range(1, MOST_LANES + 1) if steps % n == 0)
    if blocks == 1 and not segment and steps >= LEAST_BLOCKS * height:
        blocks, steps, lanes, across = steps // height, lanes, height, 1
    first = max(float(values.std(dtype=np.float64)), 0.25)
    deviation = min(round(OCTAVE * math.log2(first) - SMALLEST), CLASSES - 1)
    plain = Layout(blocks, steps, lanes, 0, PATIENCES[0], segment, across, deviation, 0)
    layouts = [plain]
    if not segment and not across and lanes % FEW_LANES == 0 and lanes > FEW_LANES:
        # where columns are alike, a lane for several saves bytes: their rows follow each other
        layouts.append(plain._replace(steps=steps * lanes // FEW_LANES, lanes=FEW_LANES))
    enough = blocks >= LEAST_BLOCKS and blocks * lanes >= LEAST_LANES * steps
    if enough and steps <= MOST_STEPS:
        layouts.append(plain._replace(caution=CAUTION))
    return layouts


class Plan:
    """A layout, and for each integer the table and the symbol that code it."""

    def __init__(self, values: np.ndarray, layout: Layout) -> None:
        shape = layout.blocks, layout.lanes, layout.steps
        shaped = values.reshape(shape).transpose(0, 2, 1) if layout.across else values
        self.shaped = shaped.reshape(layout[:3]).copy()  # outliers brought in
        self.wanted = shaped.reshape(layout[:3])
        self.layout = layout
        self.tables = np.empty(self.shaped.shape, np.int16)
        self.symbols = np.empty(self.shaped.shape, np.int16)
        self._follow()
        counts = np.bincount(
            self.tables.ravel() * np.int64(257) + self.symbols.ravel(), minlength=starts().size
        ).reshape(starts().shape)
        frequencies = np.maximum(np.diff(starts(), append=2**BITS), 1)
        cost = (counts * (BITS - np.log2(frequencies))).sum()
        places = np.flatnonzero(self.shaped != self.wanted)
        self.bits = float(cost) + LANE_BITS * layout.lanes + 40 * len(places)

    def _follow(self) -> None:
        """Do as the decoder will, whole blocks at a time."""
        caution, step = self.layout.caution, 1 if self.layout.caution else 0
        for i in range(TRIES):
            self.layout = self.layout._replace(caution=caution + step * i)
            moments, nearest = Moments(self.layout), 1.0
            for index, block in enumerate(self.shaped):
                fit, near = moments.fit()
                nearest = min(nearest, near)
                for first in range(0, self.layout.lanes, AT_ONCE):
                    while not self._lanes(index, slice(first, first + AT_ONCE), fit):
                        pass
                moments.add(block)
            if nearest > MARGIN:
                return
        raise AssertionError("every caution leads to numbers near a half")

    def _lanes(self, index: int, lanes: slice, fit: Fit) -> bool:
        """Note a block's tables and symbols; bring outliers in, and tell if there were none."""
        block, layout = self.shaped[index, :, lanes], self.layout
        integers = block.astype(np.int64)
        mean = np.repeat(fit.constant[:, None], block.shape[1], 1)
        if fit.weights is not None:
            mean += (fit.weights @ block.astype(np.float64)).astype(np.int64)
        error = magnitudes(integers, mean, fit.inverse[:, None])
        before = error.cumsum(0) - error
        seen = np.arange(layout.steps)[:, None]
        known = Place(mean, before, fit.classes[:, None], seen, integers & 1)
        table, whole = known.table(layout)
        symbols = (integers >> 1 if layout.segment else integers) - whole
        low, high = _ranges()
        inside = symbols.clip(low[table], high[table])
        self.tables[index, :, lanes], self.symbols[index, :, lanes] = table, inside + 128
        out = inside != symbols
        if not out.any():
            return True
        if layout.segment:  # the trellis goes by the parity of the half, which must stay
            inside += (symbols - inside & 1) * np.where(symbols > 0, -1, 1)
            block[out] += 2 * (inside - symbols)[out].astype(np.int8)
        else:
            block[out] += (inside - symbols)[out].astype(np.int8)
        return False

    def encode(self) -> bytes:
        """Return the header, the outliers, the states that decoding begins with, and the words."""
        layout = self.layout
        first = tables()[0].ravel()
        state, chunks = np.full(layout.lanes, LOWEST, np.int64), []
        index = self.tables.reshape(-1, layout.lanes) * np.int64(257) + self.symbols.reshape(
            -1, layout.lanes
        )
        for row in index[::-1]:
            start = first[row]
            frequency = first[row + 1] - start
            high = np.flatnonzero(state >= frequency << 32 - BITS)
            chunks.append(state[high] & 0xFFFF)
            state[high] >>= 16
            state = (state // frequency << BITS) + state % frequency + start
        words = np.concatenate([state >> 16, state & 0xFFFF, *chunks[::-1]]).astype("<u2")
        places, values = self._outliers()
        header = HEADER.pack(*layout._replace(outliers=len(places)))
        return header + places.tobytes() + values.tobytes() + words.tobytes()

    def _outliers(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where, in the order of the raw values, outliers are, uint32, and what, int8."""
        pair = [self.wanted, self.shaped]
        wanted, found = (
            x.transpose(0, 2, 1).ravel() if self.layout.across else x.ravel() for x in pair
        )
        places = np.flatnonzero(wanted != found)
        return places.astype("<u4"), wanted[places]


@functools.cache
def _ranges() -> tuple[np.ndarray, np.ndarray]:
    """Return each table's first and last symbol that can be coded."""
    present = np.diff(starts()) > 0
    return present.argmax(1) - 128, 127 - present[:, ::-1].argmax(1)


def starts() -> np.ndarray:
    """Return where symbols begin, by table."""
    return tables()[0]

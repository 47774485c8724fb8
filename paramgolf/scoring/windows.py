"""Sliding windows over a stream: which tokens a window reads and which targets it scores.

Target j is the token after input j. A window that starts at s reads the inputs s..s+T and, but for
the first, scores only its last S targets (S is the stride). So each target has at least T - S
tokens of context once the text has that many, and each is scored exactly once: the published
evaluations of pg#1204, pg#1392 and pg#1499 score the last T - S targets of a text again, with less
context, and count both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class ScoringWindows:
    """Window i reads `length` inputs from start[i] on and scores targets first[i]..stop[i].

    The arrays are int64 [n]. A short last window reads past the end of the stream; what stands
    there is padding, which no scored target can see.
    """

    length: int
    start: np.ndarray
    first: np.ndarray
    stop: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, part: slice | np.ndarray) -> ScoringWindows:
        return ScoringWindows(self.length, self.start[part], self.first[part], self.stop[part])

    def parts(self, size: int) -> list[ScoringWindows]:
        """Return the windows in their order, `size` at a time; the last may be fewer."""
        return [self[begin : begin + size] for begin in range(0, len(self), size)]

    @property
    def offset(self) -> int:
        """How many inputs every window reads before one whose target it scores."""
        return int((self.first - self.start).min())

    @property
    def targets(self) -> range:
        """The span of targets that these windows score; it must have no gaps, and at least one."""
        return range(int(self.first[0]), int(self.stop[-1]))


def sliding_windows(count: int, length: int, stride: int) -> ScoringWindows:
    """Return the windows that score each of `count` targets exactly once.

    Windows start at 0, S, 2S, ... as long as a target is left: the first scores all its targets,
    the others those from offset T-S on; the last may be short. stride = length gives windows that
    do not overlap. No tail is dropped.
    """
    assert count >= 1
    assert 1 <= stride <= length
    # the first window scores T - S targets more than the S that each of them adds
    context = length - stride
    number = max(1, -(-(count - context) // stride))
    start = np.arange(number, dtype=np.int64) * stride
    first = start + context
    first[0] = 0
    return ScoringWindows(length, start, first, np.minimum(start + length, count))


def document_windows(
    start: np.ndarray, stop: np.ndarray, length: int, stride: int
) -> ScoringWindows:
    """Return the windows that score each target once when context ends at documents.

    Document i has the targets start[i]..stop[i]; documents follow one another without gaps. A
    document longer than a window is scored by sliding windows of its own, others share windows,
    whole, in their order.
    """
    parts = []
    i = 0
    while i < len(start):
        begin = int(start[i])
        # documents up to here end within the window
        within = int(np.searchsorted(stop, begin + length, side="right"))
        if within > i:
            part = sliding_windows(int(stop[within - 1]) - begin, length, length)
        else:
            within = i + 1
            part = sliding_windows(int(stop[i]) - begin, length, stride)
        parts.append((part.start + begin, part.first + begin, part.stop + begin))
        i = within
    return ScoringWindows(length, *(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def split_chunks(windows: ScoringWindows, chunk_targets: int) -> Iterator[ScoringWindows]:
    """Yield the windows of each chunk of `chunk_targets` targets, in order.

    A window belongs to the chunk that its first scored target lies in. The targets of chunk c are
    exactly those from c * chunk_targets on where the stride divides the chunk and the window's
    length, and the chunk is no shorter than a window.
    """
    last = int(windows.first[-1]) // chunk_targets
    edges = np.searchsorted(windows.first, np.arange(last + 2) * chunk_targets)
    for begin, end in itertools.pairwise(edges.tolist()):
        yield windows[begin:end]


def split_batches(windows: ScoringWindows, rows: int) -> Iterator[ScoringWindows]:
    """Yield batches of at most `rows` windows that can share a forward pass.

    They begin to score at the same offset, because the head is computed for one part of all rows.
    Where the offsets are early in the window all can share: scores that nobody wants cost less than
    a pass.
    """
    offsets = windows.first - windows.start
    groups = [windows]
    if offsets.max() > windows.length // 4:
        groups = [windows[offsets == offset] for offset in np.unique(offsets)]
    for group in groups:
        yield from group.parts(rows)


def add_scores(
    nats: np.ndarray, times: np.ndarray, batch: ScoringWindows, scores: np.ndarray, origin: int
) -> None:
    """Add a batch's scores [B, k] to the sums of the targets from `origin` on, and count them."""
    offset = batch.length - scores.shape[1]
    bounds = np.stack([batch.start + offset, batch.first, batch.stop], axis=1).tolist()
    for (begin, first, stop), row in zip(bounds, scores, strict=True):
        scored = slice(first - origin, stop - origin)
        nats[scored] += row[first - begin : stop - begin]
        times[scored] += 1

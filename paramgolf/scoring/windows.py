"""Sliding windows over a stream: which tokens a window reads and which targets it scores.

Target j is the token after input j. A window that starts at s reads inputs s..s+T and, but for the
first, scores only its last S targets, so that each target has at least T-S tokens of context.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Windows:
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

    def __getitem__(self, part: slice | np.ndarray) -> Windows:
        return Windows(self.length, self.start[part], self.first[part], self.stop[part])

    @property
    def offset(self) -> int:
        """How many inputs every window reads before one whose target it scores."""
        return int((self.first - self.start).min())

    @property
    def targets(self) -> range:
        """The span of targets that these windows score; they must be neighbours, at least one."""
        return range(int(self.first[0]), int(self.stop[-1]))


def sliding_windows(count: int, length: int, stride: int) -> Windows:
    """Return the windows that score each of `count` targets exactly once.

    Windows start at 0, S, 2S, ... as long as a target is left: the first scores all its targets,
    the others those from offset T-S on; the last may be short. stride = length gives windows that
    do not overlap. No tail is dropped.
    """
    assert count >= 1
    assert 1 <= stride <= length
    context = length - stride
    number = max(1, -(-(count - context) // stride))
    start = np.arange(number, dtype=np.int64) * stride
    first = start + context
    first[0] = 0
    return Windows(length, start, first, np.minimum(start + length, count))


def document_windows(start: np.ndarray, stop: np.ndarray, length: int, stride: int) -> Windows:
    """Return the windows that score each target once when context ends at documents.

    Document i has the targets start[i]..stop[i]; documents are neighbours. A document longer than a
    window is scored by sliding windows of its own, others share windows, whole, in their order.
    """
    parts = []
    i = 0
    while i < len(start):
        begin = int(start[i])
        within = int(np.searchsorted(stop, begin + length, side="right"))
        if within > i:
            part = sliding_windows(int(stop[within - 1]) - begin, length, length)
        else:
            within = i + 1
            part = sliding_windows(int(stop[i]) - begin, length, stride)
        parts.append((part.start + begin, part.first + begin, part.stop + begin))
        i = within
    return Windows(length, *(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def split_chunks(windows: Windows, chunk_targets: int) -> Iterator[Windows]:
    """Yield the windows of each chunk of `chunk_targets` targets, in order.

    A window belongs to the chunk that its first scored target lies in. The targets of chunk c are
    exactly those from c * chunk_targets on where the stride divides the chunk and the window's
    length, and the chunk is no shorter than a window.
    """
    last = int(windows.first[-1]) // chunk_targets
    edges = np.searchsorted(windows.first, np.arange(last + 2) * chunk_targets)
    for begin, end in itertools.pairwise(edges.tolist()):
        yield windows[begin:end]

"""Progress of long work: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
LINE_SECONDS = 10.0


def track(
    items: Iterable[Item],
    label: str,
    *,
    total: int,
    show: bool = True,
    size: Callable[[Item], int] = lambda _: 1,
) -> Iterator[Item]:
    """Yield `items`, showing how much of `total` is done; one process alone has `show` True.

    `size` says what an item counts for.
    """
    if not show:
        yield from items
    elif sys.stderr.isatty():
        with tqdm(desc=label, total=total) as bar:
            for item in items:
                yield item
                bar.update(size(item))
    else:
        yield from _track_in_lines(items, label, total, size)


def _track_in_lines(
    items: Iterable[Item], label: str, total: int, size: Callable[[Item], int]
) -> Iterator[Item]:
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            say(f"{label}: {done}/{total} in {now - start:.0f} s")


def say(message: str) -> None:
    """Print a line of log to stderr."""
    print(message, file=sys.stderr, flush=True)


class Meter:
    """Progress of work that knows its share done: a bar on a terminal, lines in a log."""

    def __init__(self, label: str, *, show: bool = True) -> None:
        self._label = label
        self._show = show
        self._last = time.monotonic()
        terminal = show and sys.stderr.isatty()
        self._bar = tqdm(desc=label, total=100, unit="%") if terminal else None

    def update(self, fraction: float, message: str) -> None:
        """Show that `fraction` is done, and `message`."""
        if self._bar is not None:
            self._bar.set_postfix_str(message, refresh=False)
            self._bar.update(round(100 * fraction) - self._bar.n)
        elif self._show and time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            say(f"{self._label}: {fraction:.0%} {message}")

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

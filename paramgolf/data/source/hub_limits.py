"""What a hub may take: a deadline for each request, and no more bytes than it promised.

The client waits for ever for an answer that does not come, or comes a byte at a time, and writes
what a server sends for as long as it sends.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

from paramgolf.errors import ParamGolfError

FIX = "try again later, or from another network; or set data.source to sample or files"


@contextlib.contextmanager
def deadline(seconds: float, where: str) -> Iterator[None]:
    """Raise a ParamGolfError in the block after so many seconds, whatever it waits for.

    A signal interrupts it, again each second in case the client takes the error for one of its
    own. Signals reach the main thread alone; in another the block has no deadline.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> NoReturn:
        what, expected = "the hub takes too long", f"an answer within {seconds:.0f} s"
        raise ParamGolfError(what, where=where, expected=expected, fix=FIX)

    handler = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def bounded_bar(size: int, where: str) -> type:
    """Return the class of a progress bar that stops a download at the file's size.

    The client tells its bar of each piece before it writes it.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class BoundedBar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            # the other protocol, xet, asks for a file's pieces by their hashes
            self._bounded = options.get("name") == "huggingface_hub.http_get"
            self._received = options.get("initial") or 0
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

        def update(self, n: Any = 1) -> Any:
            self._received += n or 0
            if self._bounded and self._received > size:
                what = "a file from the hub is longer than the hub says"
                found = f"at least {self._received:,} bytes"
                raise ParamGolfError(
                    what, where=where, expected=f"{size:,} bytes", found=found, fix=FIX
                )
            return super().update(n)

    return BoundedBar

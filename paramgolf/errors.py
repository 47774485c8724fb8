"""Errors meant for the user: one message that says what, where, expected, found and what to do."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

EXIT_USER_ERROR = 2
MOST_SHOWN = 2000  # characters of a part of a message


class ParamGolfError(Exception):
    """A fault the user can mend; commands print it without a traceback and exit with code 2.

    `what` is one sentence; the keyword parts that are given follow it, a line each.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        fix: str | None = None,
    ) -> None:
        parts = {"where": where, "expected": expected, "found": found, "what to do": fix}
        given = {name: str(part) for name, part in parts.items() if part is not None}
        # what was found may be a file of one line, or a library's message that quotes it
        shown = {n: p if len(p) <= MOST_SHOWN else f"{p[:MOST_SHOWN]}..." for n, p in given.items()}
        lines = [what, *(f"  {name}: {part}" for name, part in shown.items())]
        super().__init__("\n".join(lines))


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn a ParamGolfError, or Ctrl-C, into one message on stderr and an exit code.

    The block is the program: the process ends after it.
    """
    try:
        yield
    except ParamGolfError as error:
        print(f"paramgolf: {error}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_USER_ERROR) from None
    except KeyboardInterrupt:
        print("paramgolf: interrupted", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    finally:
        gc.freeze()  # or the collector looks at all of torch on the way out: 0.3 s to 0.7 s

"""What commands print tables to: rich's console, whose end is that of any program of ours."""

from __future__ import annotations

from typing import NoReturn

import rich.console

from paramgolf.program import CLOSED_PIPE


class Console(rich.console.Console):
    """A console without highlighting, which ends as `print` does where nobody reads any more."""

    def __init__(self, *, markup: bool = True) -> None:
        super().__init__(highlight=False, markup=markup)

    def on_broken_pipe(self) -> NoReturn:
        """End the program with its code for that; rich's own, 1, says that a check failed."""
        raise SystemExit(CLOSED_PIPE)

"""What commands print tables to: rich's console, whose end is that of any program of ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn

import rich.console
from rich.table import Table
from rich.text import Text

from paramgolf.program import CLOSED_PIPE


class Console(rich.console.Console):
    """A console that shows texts as they are, and ends as `print` does where nobody reads on."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> NoReturn:
        """End the program with its code for that; rich's own, 1, says that a check failed."""
        raise SystemExit(CLOSED_PIPE)


def facts(rows: Iterable[Sequence[str | Text]]) -> Table:
    """Return rows as columns without lines or headings."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table

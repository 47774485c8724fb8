"""A training log that plots can follow: each figure as a table of its own, as DVCLive writes them.

`dvc plots show` and DVC's extension for editors read them while training runs. Apart from the log,
because train_gpt.py does without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paramgolf.files import write_text
from paramgolf.training.log import Log

FIGURES = {"step": ("loss", "lr"), "validation": ("val_bpb",)}  # of events; names of tables


class LiveLog(Log):
    """Writes plots/FIGURE.tsv beside the log: a step and a value a line, after their names."""

    def write(self, record: dict[str, Any]) -> None:
        """Append a record to the log, and its figures to their tables."""
        super().write(record)
        if self._show:
            for name, line in _figures(record):
                with self._table(name).open("a", encoding="utf-8") as file:
                    file.write(line)

    def restore(self, lines: list[str]) -> None:
        """Begin the log and the tables again with the lines of a checkpoint."""
        super().restore(lines)
        if not self._show:
            return
        tables = {name: f"step\t{name}\n" for names in FIGURES.values() for name in names}
        for record in map(json.loads, lines):
            for name, line in _figures(record):
                tables[name] += line
        for name, table in tables.items():
            write_text(self._table(name), table)

    def _table(self, name: str) -> Path:
        return self._path.parent / "plots" / f"{name}.tsv"


def _figures(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the table and the line of each figure in a record."""
    for name in FIGURES.get(record["event"], ()):
        yield name, f"{record['step']}\t{record[name]}\n"

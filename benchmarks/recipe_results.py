"""The results of recipes.py: a file of JSON that every call adds to, and the page made from it.

`runs` in it holds what was run, by recipe; the rows that all benchmarks have follow.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tables import RESULTS, Row, made_by

from paramgolf.estimate.devices import GIB
from paramgolf.files import read_json, write_json, write_text

PATH = RESULTS / "recipes.json"
MADE = ("device", "torch", "command")  # of each run, and of the file all that there are
# figure of a recipe: heading, how it is written, unit, what is better
FIGURES: dict[str, tuple[str, str, str, Literal["higher", "lower"]]] = {
    "parameters": ("parameters", "{:,.0f}", "", "lower"),
    "tokens": ("tokens", "{:,.0f}", "tokens", "higher"),
    "first_loss": ("loss at step 0", "{:.4f}", "nats", "lower"),
    "step_ms_before": ("ms a step, before recurrence", "{:.1f}", "ms", "lower"),
    "step_ms_after": ("after", "{:.1f}", "ms", "lower"),
    "tokens_per_second": ("tokens/s", "{:,.0f}", "tokens/s", "higher"),
    "startup_seconds": ("s to the first step", "{:.0f}", "s", "lower"),
    "peak_memory_bytes": ("GiB at the peak", "{:.1f}", "bytes", "lower"),
    "val_bpb": ("bits/byte, trained", "{:.4f}", "bits/byte", "lower"),
    "val_bpb_packed": ("packed", "{:.4f}", "bits/byte", "lower"),
    "lost": ("lost by quantising", "{:+.4f}", "bits/byte", "lower"),
    "val_bpb_sliding": ("sliding", "{:.4f}", "bits/byte", "lower"),
    "val_bpb_adapted": ("adapted", "{:.4f}", "bits/byte", "lower"),
    "bytes_total": ("bytes", "{:,.0f}", "bytes", "lower"),
    "headroom_bytes": ("left", "{:,.0f}", "bytes", "higher"),
}
# what quantising may cost a recipe, bits per byte (the published run of #1499 lost 0.22)
MOST_LOST = {"pr1499": 0.02}


class Results:
    """What is in the file; every change is written at once, one thread after another.

    Processes that run at the same time write a file each, and `add_file` brings them together.
    """

    def __init__(self, path: Path = PATH) -> None:
        self.path = path
        self._lock = threading.Lock()
        self.recipes: dict[str, Any] = _read(path) if path.is_file() else {}

    def add_recipe(self, name: str, figures: dict[str, float], command: str) -> None:
        """Take a recipe's figures in the place of older ones."""
        with self._lock:
            self.recipes[name] = {**made_by(command), "figures": figures}
            self._write()

    def add_file(self, path: Path) -> None:
        """Take the recipes that another file holds, in the place of the same ones here."""
        with self._lock:
            self.recipes |= _read(path)
            self._write()

    def _write(self) -> None:
        made = self.recipes.values()
        content = {
            **{key: "; ".join(dict.fromkeys(one[key] for one in made)) for key in MADE},
            "rows": [asdict(row) for row in rows_of(self.recipes)],
            "runs": {"recipes": self.recipes},
        }
        write_json(self.path, content)
        write_text(self.path.with_suffix(".md"), "\n".join(page(self.recipes)) + "\n")


def _read(path: Path) -> dict[str, Any]:
    """Return the recipes of a file of results."""
    found: dict[str, Any] = read_json(path)["runs"]["recipes"]
    return found


def rows_of(recipes: dict[str, Any]) -> Iterator[Row]:
    """Yield the figures of recipes as rows."""
    for name, recipe in recipes.items():
        for key, value in recipe["figures"].items():
            _, _, unit, better = FIGURES[key]
            most = MOST_LOST.get(name) if key == "lost" else None
            yield Row(f"{name}: {key}", value, unit, None, most, better)


def page(recipes: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the page."""
    shown = [key for key in FIGURES if any(key in r["figures"] for r in recipes.values())]
    yield "# Recipes\n"
    yield _line(["recipe", *(FIGURES[key][0] for key in shown)])
    yield "|" + "---|" * (1 + len(shown))
    for name, recipe in recipes.items():
        yield _line([name, *(_written(key, recipe["figures"].get(key)) for key in shown)])
    yield ""
    for name, recipe in recipes.items():
        yield f"- {name}: `{recipe['command']}` on {recipe['device']}, torch {recipe['torch']}"


def _written(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return FIGURES[key][1].format(value / GIB if key == "peak_memory_bytes" else value)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"

"""The results of recipes.py: a file of JSON that every call adds to, and the page made from it.

`runs` in it holds what was run, by recipe, and an older table of techniques; the rows that all
benchmarks have follow.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tables import RESULTS, Row, made_by

from paramgolf.estimate.devices import GIB
from paramgolf.files import read_json, write_json, write_text

PATH = RESULTS / "recipes.json"
COMMON = "common"
MADE = ("device", "torch", "command")  # of each run, and of the file all that there are
TECHNIQUES = "python benchmarks/recipes.py --techniques"
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
        self.content: dict[str, Any] = {"recipes": {}, "techniques": {}}
        if path.is_file():
            self.content = read_json(path)["runs"]

    def add_recipe(self, name: str, figures: dict[str, float], command: str) -> None:
        """Take a recipe's figures in the place of older ones."""
        with self._lock:
            self.content["recipes"][name] = {**made_by(command), "figures": figures}
            self._write()

    def add_file(self, path: Path) -> None:
        """Take the recipes that another file holds, in the place of the same ones here."""
        with self._lock:
            self.content["recipes"] |= read_json(path)["runs"]["recipes"]
            self._write()

    def _write(self) -> None:
        made = [*self.content["recipes"].values()]
        groups = [group["settings"] for group in self.content["techniques"].values()]
        made += [{"command": TECHNIQUES, **group} for group in groups]
        content = {
            **{key: "; ".join(dict.fromkeys(one[key] for one in made)) for key in MADE},
            "rows": [asdict(row) for row in rows_of(self.content)],
            "runs": self.content,
        }
        write_json(self.path, content)
        write_text(self.path.with_suffix(".md"), "\n".join(page(self.content)) + "\n")


def rows_of(content: dict[str, Any]) -> Iterator[Row]:
    """Yield the figures of recipes and of techniques as rows."""
    for name, recipe in content["recipes"].items():
        figures = recipe["figures"]
        for key, value in figures.items():
            _, _, unit, better = FIGURES[key]
            most = MOST_LOST.get(name) if key == "lost" else None
            yield Row(f"{name}: {key}", value, unit, None, most, better)
    for group in content["techniques"].values():
        for name in group["rows"]:
            for key, when in (("val_bpb", ""), ("val_bpb_packed", ", packed")):
                if found := differences(group["rows"], name, key):
                    figure = f"{name}, above the common recipe{when}"
                    yield Row(figure, statistics.mean(found), "bits/byte", None, None, "lower")


def page(content: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the page."""
    shown = [
        key for key in FIGURES if any(key in r["figures"] for r in content["recipes"].values())
    ]
    if shown:
        yield "# Recipes\n"
        yield from _table(["recipe", *(FIGURES[key][0] for key in shown)])
    for name, recipe in content["recipes"].items():
        yield _line([name, *(_written(key, recipe["figures"].get(key)) for key in shown)])
    if shown:
        yield ""
    made = [(r["command"], r["device"], r["torch"], n) for n, r in content["recipes"].items()]
    for command, device, version, name in made:
        yield f"- {name}: `{command}` on {device}, torch {version}"
    for group in content["techniques"].values():
        settings = ", ".join(f"{name} {value}" for name, value in group["settings"].items())
        yield "\n# What each technique does\n"
        yield "**Of few tokens, and mostly one seed: this says what learns fast, not what wins. No"
        yield "decision rests on it: `paramgolf lab benchmarks/plans/techniques.yaml` measures it"
        yield "anew.**\n"
        yield f"{settings}. Differences are to the common"
        yield "recipe with the same seeds, ± their standard deviation; packed is without overlap."
        yield "What only quantises is compared by what quantising loses."
        if pooled := deviation(group["rows"]):
            yield f"A difference of one seed is uncertain by {pooled:.4f}: rows of several, pooled."
        yield ""
        yield from _table(["technique", "change", *TECHNIQUE_COLUMNS])
        for name, row in group["rows"].items():
            change = f"`{row['changes']}`" if row["changes"] else ""
            yield _line([name, change, *cells(group["rows"], name)])


TECHNIQUE_COLUMNS = ("bits/byte", "difference", "packed", "difference", "bytes", "seeds")


def cells(rows: dict[str, Any], name: str) -> list[str]:
    """Return the figures of a technique's row, in the order of TECHNIQUE_COLUMNS."""
    runs, written = rows[name]["seeds"], []
    for key in ("val_bpb", "val_bpb_packed"):
        values = [run[key] for run in runs.values() if key in run]
        written.append(f"{statistics.mean(values):.4f}" if values else "")
        written.append(_signed(differences(rows, name, key)))
    sizes = [run["bytes_total"] for run in runs.values() if "bytes_total" in run]
    written.append(f"{statistics.mean(sizes):,.0f}" if sizes else "")
    return [*written, str(len(runs))]


def differences(rows: dict[str, Any], name: str, key: str = "val_bpb") -> list[float]:
    """Return by how much a technique's score is above the common one, seed by seed.

    What only quantises has no training of its own: of its packed score, what quantising lost.
    """
    common = rows.get(COMMON, {"seeds": {}})["seeds"]
    if name == COMMON:
        return []
    return [
        run["lost"] - (common[seed][key] - common[seed]["val_bpb"])
        if "lost" in run
        else run[key] - common[seed][key]
        for seed, run in rows[name]["seeds"].items()
        if key in run and key in common.get(seed, {})
    ]


def deviation(rows: dict[str, Any]) -> float | None:
    """Return the standard deviation of a trained technique's difference, pooled over the rows."""
    found = [values for name in rows if len(values := differences(rows, name)) > 1]
    freedom = sum(len(values) - 1 for values in found)
    squares = sum((len(values) - 1) * statistics.variance(values) for values in found)
    return (squares / freedom) ** 0.5 if freedom else None


def _signed(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.4f}{spread}"


def _written(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return FIGURES[key][1].format(value / GIB if key == "peak_memory_bytes" else value)


def _table(names: list[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"

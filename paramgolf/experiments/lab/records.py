"""The laboratory's results: a JSON file in which every stage is entered when it ends.

`stages` holds a stage's figures by its key, which is a hash of the parameters, code and tokens that
they depend on; `failures` holds why stages failed, and `plans` the keys of each plan's runs. A plan
that is run again finds the figures that exist, even those of another plan.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.entries import Results
from paramgolf.experiments.lab.stages import Stage
from paramgolf.files import read_json, write_json
from paramgolf.schema import parse

SCHEMA = 1
KEY_LENGTH = 16
PARTS = ("plans", "stages", "failures")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a variant: its stages in order, each with the key of what it depends on.

    `replicate` counts the runs of one seed from 0. `alike` holds the keys that the stages would
    have but for their code.
    """

    variant: str
    seed: int
    replicate: int
    keys: Mapping[str, str]
    alike: Mapping[str, str]
    content: Mapping[str, Any]
    tokens: Path

    @property
    def label(self) -> str:
        """The run's name in messages."""
        again = f", run {self.replicate + 1}" if self.replicate else ""
        return f"{self.variant}, seed {self.seed}{again}"


def keys_of(
    content: Mapping[str, Any],
    stages: Mapping[str, Stage],
    wanted: Sequence[str],
    beginning: Sequence[object],
    *,
    code: bool = True,
) -> dict[str, str]:
    """Return the key of each wanted stage: of its code, its parameters, and what it depends on.

    `beginning` is what training depends on beside its parameters; without `code`, code is left out.
    """
    keys: dict[str, str] = {}
    for name in wanted:
        before = [keys[other] for other in stages[name].depends] or beginning
        keys[name] = _key(name, stages[name], content, before, code=code)
    return keys


def _key(
    name: str,
    stage: Stage,
    content: Mapping[str, Any],
    before: Sequence[object],
    *,
    code: bool = True,
) -> str:
    made = stage.code if code else None
    what = json.dumps([name, made, stage.values(content), [*before]], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:KEY_LENGTH]


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path)
    fix = "name another file with --results, or take none of it"
    if found.get("schema") != SCHEMA or not all(isinstance(found.get(p), dict) for p in PARTS):
        raise ParamGolfError("not results of the laboratory", where=path, fix=fix)
    parse(Results, found, "", where=path, of="the results", fix=fix)
    return found


class Records:
    """The file, written anew with each figure; tables and pages lie beside it, as .md and .html."""

    def __init__(self, path: Path) -> None:
        if path.suffix != ".json":
            fix = "name a file of JSON with --results: its tables lie beside it, as .md and .html"
            raise ParamGolfError("results have a name that ends in .json", found=path.name, fix=fix)
        self.path = path
        self.content: dict[str, Any] = {part: {} for part in PARTS} | {"rows": []}
        if path.is_file():
            self.content = _read(path)

    @property
    def page(self) -> Path:
        """Where the tables are in Markdown."""
        return self.path.with_suffix(".md")

    def stage(self, key: str) -> dict[str, Any] | None:
        """Return the figures of a stage, None where it has not run."""
        found: dict[str, Any] | None = self.content["stages"].get(key)
        return found

    def keys_of_any_code(
        self, run: Run, stages: Mapping[str, Stage]
    ) -> tuple[list[dict[str, str]], set[str]]:
        """Return all that a run's keys can be, and which keys among them are of other code.

        A stage has the key of its code as it is, or that of figures which other code made, if it
        made them of the outputs of the stages before it that have these keys. The first are those
        of the code as it is.
        """
        figures, alike = self.content["stages"], defaultdict(list)
        for key, one in figures.items():
            alike[one.get("alike")].append(key)
        found: list[dict[str, str]] = [{}]
        others: set[str] = set()
        for name, first in run.keys.items():
            longer = []
            for keys in found:
                before = [keys[other] for other in stages[name].depends]
                own = _key(name, stages[name], run.content, before) if before else first
                made = [k for k in alike[run.alike[name]] if figures[k].get("before", []) == before]
                others |= {*made} - {own}
                longer += [{**keys, name: key} for key in dict.fromkeys([own, *made])]
            found = longer
        return found, others

    def failure(self, run: Run) -> dict[str, Any] | None:
        """Return why a run cannot be finished, None where nothing is known against it."""
        failures = self.content["failures"]
        return next((failures[key] for key in run.keys.values() if key in failures), None)

    def take(self, path: Path) -> None:
        """Take what another file of results holds; where both have a figure, this one's stays."""
        self._fill(_read(path))

    def renew(self) -> None:
        """Read the file again, which another laboratory may have written; what was taken stays."""
        if self.path.is_file():
            taken, self.content = self.content, _read(self.path)
            self._fill(taken)

    def _fill(self, other: Mapping[str, Any]) -> None:
        for part in PARTS:
            self.content[part] = other[part] | self.content[part]
        for key in self.content["stages"]:
            self.content["failures"].pop(key, None)

    def add_stage(self, key: str, figures: Mapping[str, Any]) -> None:
        """Enter what a stage found, in the place of an earlier failure."""
        self.content["failures"].pop(key, None)
        self.content["stages"][key] = dict(figures)
        self._write()

    def add_failure(self, key: str, figures: Mapping[str, Any]) -> None:
        """Enter why a stage failed."""
        self.content["failures"][key] = dict(figures)
        self._write()

    def forgive(self, runs: Sequence[Run], *, only_killed: bool) -> None:
        """Forget the failures of runs, so that they are run again."""
        for key in {key for run in runs for key in run.keys.values()}:
            failure = self.content["failures"].get(key)
            if failure is not None and (failure["killed"] or not only_killed):
                del self.content["failures"][key]

    def add_plan(self, name: str, plan: Mapping[str, Any]) -> None:
        """Enter a plan and its runs, in the place of an earlier form of it."""
        self.content["plans"][name] = dict(plan)
        self._write()

    def add_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Enter the tables' figures, as all files of benchmarks/results have them."""
        self.content["rows"] = [*rows]
        self._write()

    def _write(self) -> None:
        trained = [r["metrics"] for r in self.content["stages"].values() if r["stage"] == "train"]
        made = {
            "device": dict.fromkeys(metrics["device"] for metrics in trained),
            "torch": dict.fromkeys(metrics["torch"] for metrics in trained),
            "command": dict.fromkeys(p["command"] for p in self.content["plans"].values()),
        }
        self.content |= {key: "; ".join(values) for key, values in made.items()}
        write_json(self.path, {**self.content, "schema": SCHEMA})

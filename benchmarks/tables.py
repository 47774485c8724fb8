"""Where benchmarks write their figures: results/NAME.json, and a table NAME.md made from it."""

from __future__ import annotations

import platform
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.run import commit_of_code
from paramgolf.files import read_json, write_json, write_text
from paramgolf.process import cores

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One figure, beside what it is compared with and what it should reach (None: nothing)."""

    figure: str
    value: float
    unit: str
    reference: float | None
    target: float | None
    better: Literal["higher", "lower"]


def made_by(command: str) -> dict[str, str]:
    """Return what a figure was measured with: command, device, version of torch, commit."""
    made = {"command": command, "device": device_name(), "torch": torch.__version__}
    return made | commit_of_code()


def given_command() -> str:
    """Return the command of this process, without the folders of paths on this machine."""
    script, *words = sys.argv
    words = [Path(word).name if word.startswith("/") else word for word in words]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *words])


def device_name() -> str:
    """Return the GPU's name, or the processor's cores and kind."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cores()} cores, {platform.machine()}, Python {platform.python_version()}"


def need_gpus(count: int = 1) -> None:
    """Refuse to go on with fewer GPUs."""
    found = torch.cuda.device_count()
    if found < count:
        raise ParamGolfError("this measures GPUs", expected=f"at least {count}", found=found)


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse ways to score that there are not."""
    known = [*known]
    if unknown := [name for name in names if name not in known]:
        raise ParamGolfError("no such way", found=unknown, expected=f"some of {known}")


def write_results(name: str, rows: list[Row], *, show: bool = True) -> None:
    """Write the figures and print their table; older ones of a name and device are replaced.

    A benchmark of many minutes writes what it has so far, with `show` off; several processes may
    write figures of their own into one file.
    """
    path = RESULTS / f"{name}.json"
    with FileLock(Path(tempfile.gettempdir()) / f"paramgolf-{name}.lock"):
        table = _join(path, rows)
    if show:
        print(table)


def _join(path: Path, rows: list[Row]) -> str:
    """Write the figures beside those that are in the file; return the table of all."""
    made = made_by(given_command())
    fresh = {row.figure: {**asdict(row), **made} for row in rows}
    content = read_json(path) if path.is_file() else {**made, "rows": []}

    def newest(row: dict[str, Any]) -> dict[str, Any]:
        devices = row.get("device", content["device"]).split("; ")
        return fresh.pop(row["figure"], row) if made["device"] in devices else row

    kept = [*map(newest, content["rows"])]
    content = {**content, "rows": [*kept, *fresh.values()]}
    write_json(path, content)
    table = markdown(content)
    write_text(path.with_suffix(".md"), table)
    return table


def markdown(content: dict[str, Any]) -> str:
    """Return the tables of a result file, one of what each command measured.

    Older rows do not tell how they were made: the file names all that there were.
    """

    def made(row: dict[str, Any]) -> str:
        row = row if "command" in row else content
        commit = f", commit {row['commit']}" if "commit" in row else ""
        return f"`{row['command']}` on {row['device']}, torch {row['torch']}{commit}"

    order = list(dict.fromkeys(map(made, content["rows"])))
    rows = sorted(content["rows"], key=lambda row: order.index(made(row)))
    return "\n".join("\n".join(_table(head, part)) for head, part in groupby(rows, made))


def _table(heading: str, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    yield from (heading, "", "| figure | value | reference | target |", "|---|---|---|---|")
    for row in rows:
        sign = {"higher": ">=", "lower": "<="}[row["better"]]
        target = "" if row["target"] is None else f"{sign} {row['target']:,.4g} {row['unit']}"
        reference = "" if row["reference"] is None else f"{row['reference']:,.4g}"
        value = f"{row['value']:,.5g} {row['unit']}"
        yield f"| {row['figure']} | {value} | {reference} | {target} |"
    yield ""

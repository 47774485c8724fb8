"""Where benchmarks write their figures: results/NAME.json, and a table NAME.md made from it."""

from __future__ import annotations

import platform
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock

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


def device_name() -> str:
    """Return the GPU's name, or the processor's cores and kind."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cores()} cores, {platform.machine()}, Python {platform.python_version()}"


def write_results(name: str, rows: list[Row], command: str, *, show: bool = True) -> None:
    """Write the figures and print their table; older figures of a name are replaced.

    A benchmark of many minutes writes what it has so far, with `show` off; several processes may
    write figures of their own into one file.
    """
    path = RESULTS / f"{name}.json"
    with FileLock(Path(tempfile.gettempdir()) / f"paramgolf-{name}.lock"):
        table = _join(path, rows, command)
    if show:
        print(table)


def _join(path: Path, rows: list[Row], command: str) -> str:
    """Write the figures beside those that are in the file; return the table of all."""
    fresh = {row.figure: asdict(row) for row in rows}
    made = {"device": device_name(), "torch": torch.__version__, "command": command}
    before = read_json(path) if path.is_file() else {**made, "rows": []}
    kept = [fresh.pop(row["figure"], row) for row in before["rows"]]
    joined = {key: dict.fromkeys([*before[key].split("; "), now]) for key, now in made.items()}
    content = {
        **{key: "; ".join(values) for key, values in joined.items()},
        "rows": [*kept, *fresh.values()],
    }
    write_json(path, content)
    table = markdown(content)
    write_text(path.with_suffix(".md"), table)
    return table


def markdown(content: dict) -> str:
    """Return the table of a result file."""
    lines = [f"`{content['command']}` on {content['device']}, torch {content['torch']}", ""]
    lines += ["| figure | value | reference | target |", "|---|---|---|---|"]
    for row in content["rows"]:
        sign = {"higher": ">=", "lower": "<="}[row["better"]]
        target = "" if row["target"] is None else f"{sign} {row['target']:,.4g} {row['unit']}"
        reference = "" if row["reference"] is None else f"{row['reference']:,.4g}"
        value = f"{row['value']:,.5g} {row['unit']}"
        lines.append(f"| {row['figure']} | {value} | {reference} | {target} |")
    return "\n".join(lines) + "\n"

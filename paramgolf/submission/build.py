"""Make the folder of a submission: nothing is left of it unless it scores what was recorded."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.compare import compare
from paramgolf.experiments.read import HERE, find
from paramgolf.files import write_json, write_text
from paramgolf.params import read_yaml
from paramgolf.progress import say
from paramgolf.recipes import RECIPES, flatten
from paramgolf.submission.about import About
from paramgolf.submission.collect import SeedRun, collect
from paramgolf.submission.describe import submission
from paramgolf.submission.evaluate import (
    command,
    compare_scores,
    effective,
    evaluator_of,
    score_in_folder,
    score_in_project,
)
from paramgolf.submission.missing import missing
from paramgolf.submission.readme import readme
from paramgolf.submission.rebuild import check_code
from paramgolf.submission.script import requirements
from paramgolf.submission.training_log import training_log

FOLDER = Path("submissions")


def submit(
    wanted: Sequence[str],
    about: About,
    *,
    against: str | None,
    out: Path | None,
    day: date,
    root: Path,
) -> Path:
    """Make the folder of the runs `wanted` (none: the workspace) and return it.

    Its model.bin is that of the first run. `against` is a record of recipes/records.yaml. A
    ParamGolfError lists all that is missing; then, or where the folder does not score what was
    recorded, there is no folder.
    """
    target = out or root / FOLDER / f"track_{about.track}" / f"{day}_{slug(about.name)}"
    if target.exists():
        fix = "remove it, or name another with --out"
        raise ParamGolfError(f"{target} is there already", fix=fix)
    sources = find(wanted, root) if wanted else [HERE]
    with tempfile.TemporaryDirectory(prefix="paramgolf-") as name:
        scratch = Path(name)
        runs, faults = collect(sources, scratch, root)
        faults += missing(runs, about, root)
        faults += check_code(runs, scratch, root)
        if faults:
            listing = "".join(f"\n  - {fault}" for fault in faults)
            raise ParamGolfError(f"the submission is not complete:{listing}")
        compared = None if against is None else _compared(against, runs, root)
        first = runs[0]
        first.copy_validation(scratch / "tokens", root)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as made:
            folder = Path(made) / target.name
            _fill(folder, runs)
            checked = _score(folder, first, scratch, root)
            _describe(folder, runs, about, day=day, against=compared, checked=checked, root=root)
            folder.rename(target)
    return target


def slug(name: str) -> str:
    """Return a name as part of a folder's: letters, digits, and _ for the rest."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or "submission"


def _compared(record: str, runs: Sequence[SeedRun], root: Path) -> dict[str, Any]:
    """Return what belongs in a submission of its comparison with a record."""
    stage = evaluator_of(runs[0].sections)
    names = [run.name for run in runs]
    result = compare(names, against=record, score=f"{stage}.val_bpb", everywhere=False, root=root)
    (group,) = result["groups"]
    return {"against": result["against"], "verdict": group["verdict"], "notes": group["flags"]}


def _fill(folder: Path, runs: Sequence[SeedRun]) -> None:
    """Write all but the description: code, model, parameters, requirements, a log per seed."""
    folder.mkdir()
    for name in ("model.bin", "train_gpt.py", "params.yaml"):
        shutil.copyfile(runs[0].folder / name, folder / name)
    packages = requirements(runs[0].script)
    write_text(folder / "requirements.txt", "".join(f"{line}\n" for line in packages))
    for run in runs:
        write_text(folder / f"train_seed{run.seed}.log", training_log(run))


def _score(folder: Path, first: SeedRun, scratch: Path, root: Path) -> float:
    """Return the bits per byte that the folder scores by itself.

    Both this and the score of the project's own evaluator must be the one recorded: what the folder
    says of itself proves that it runs, and not what it is worth.
    """
    params, tokens = first.sections, scratch / "tokens"
    stage = evaluator_of(params)
    say(f"submit: scoring model.bin of seed {first.seed} with {stage}")
    model, project = folder / "model.bin", scratch / "project"
    scored = score_in_project(model, tokens, params, stage, scratch=project, root=root)
    compare_scores(scored, first.metrics, stage)
    say("submit: scoring it from inside the folder")
    words = command(params, stage, first.script)
    by_itself = score_in_folder(folder, tokens, words, root=root)
    compare_scores(by_itself, first.metrics, stage)
    val_bpb = float(by_itself["val_bpb"])
    say(f"submit: val_bpb {val_bpb:.8f}, as recorded")
    return val_bpb


def _describe(
    folder: Path,
    runs: Sequence[SeedRun],
    about: About,
    *,
    day: date,
    against: Mapping[str, Any] | None,
    checked: float,
    root: Path,
) -> None:
    """Write submission.json and README.md; `checked` is the folder's own score."""
    params, script = runs[0].sections, runs[0].script
    stage = evaluator_of(params)
    base = flatten(read_yaml(root / RECIPES / "base.yaml"))
    content = submission(runs, about, stage, day=day, limits=base, against=against)
    content["parameters"] = effective(params, stage, script)
    write_json(folder / "submission.json", content)
    words = command(params, stage, script)
    text = readme(content, runs, words=words, base=base, checked=checked)
    write_text(folder / "README.md", text)

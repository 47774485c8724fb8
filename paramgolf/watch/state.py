"""All that is known of a run at one moment, as one plain dictionary."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paramgolf.files import read_json
from paramgolf.metrics import METRICS
from paramgolf.nvidia_smi import gpus
from paramgolf.params import PARAMS_PATH, read_yaml
from paramgolf.recipes import Params, check
from paramgolf.training.schedule import point
from paramgolf.training_log import LOG
from paramgolf.watch.logs import Training, output, training
from paramgolf.watch.system import Stage, stage_under_way

SCHEMA = 1
SILENCE_SECONDS = 60.0  # of a training that is worth a warning; compiling may take as long
EVALUATORS = ("eval_sliding", "eval_ttt")


def state(root: Path, printed: Path) -> dict[str, Any]:
    """Return what the run in the folder `root` does; its output is in the file `printed`.

    `training` is that of the last run, where none is under way. Only files are read.
    """
    params = check(read_yaml(root / PARAMS_PATH), where=root / PARAMS_PATH)
    stage, log, end = stage_under_way(root), training(root / LOG), output(printed)
    trains = stage is not None and stage.name == "train"
    warnings = list(end.warnings) if end else []
    if trains and log and log.silent_seconds > SILENCE_SECONDS:
        warnings.append(f"training has written nothing for {log.silent_seconds:.0f} s")
    left = training_left(params, log) if trains else end.left_seconds if end and stage else None
    return {
        "schema": SCHEMA,
        "stage": dataclasses.asdict(stage) if stage else None,
        "left_seconds": left,
        "training": dataclasses.asdict(log) if log else None,
        "budgets": [] if stage is None else list(budgets(root, params, stage, log)),
        "gpus": [dataclasses.asdict(gpu) for gpu in gpus()],
        "output": end.line if end else None,
        "warnings": warnings,
    }


def training_left(params: Params, log: Training | None) -> float | None:
    """Return the seconds until training ends, by the mean of its steps; None before the first."""
    if log is None or not log.step:
        return None
    at = point(params.train, log.step, log.seconds)
    return at.steps_left * log.seconds / log.step


def budgets(
    root: Path, params: Params, stage: Stage, log: Training | None
) -> Iterator[Mapping[str, Any]]:
    """Yield each limit of seconds that counts now: its name, the limit and what is left of it."""
    trained = log.seconds if log else 0.0
    limit = params.verify.train_seconds
    if stage.name == "train":
        if (budget := params.train.budget_seconds) is not None:
            # the reserve is calibration's
            yield _budget("train.budget_seconds", budget - params.train.reserve_seconds, trained)
        yield _budget("verify.train_seconds", limit, trained)
    elif stage.name == "calibrate" and params.calibrate.source == "train":
        trained = read_json(root / METRICS / "train.json")["train_seconds"]
        yield _budget("verify.train_seconds", limit, trained + stage.seconds)
    elif stage.name in EVALUATORS:
        yield _budget("verify.eval_seconds", params.verify.eval_seconds, stage.seconds)


def _budget(name: str, limit: float, spent: float) -> Mapping[str, Any]:
    return {"name": name, "limit_seconds": limit, "left_seconds": limit - spent}

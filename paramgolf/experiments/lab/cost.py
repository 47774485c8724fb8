"""What a plan will cost before it runs: seconds of GPUs, by stage, and hours by the clock."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramgolf.estimate.devices import DEVICES
from paramgolf.estimate.speed import Machine, Stretch, dollars, stretches
from paramgolf.experiments.lab.records import Records, Run
from paramgolf.experiments.lab.stages import WITHOUT_GPU
from paramgolf.recipes import check

# of recipe best at the unit of measurement on an H100, until the records have seconds of their own;
# train: what start and validation take beside the budget; eval_ttt, by documents, is a guess
SECONDS = {
    "train": 55.0,
    "calibrate": 22.0,
    "quantize": 68.0,
    "packed": 21.0,
    "eval_sliding": 33.0,
    "eval_ttt": 300.0,
}
DEVICE = "H100"


@dataclass(frozen=True, slots=True)
class Cost:
    """What is left to run: trainings, seconds that GPUs are held, seconds by the clock."""

    runs: int
    trainings: int
    gpu_seconds: float
    clock_seconds: float
    measured: bool
    """Whether all stages' seconds are those of earlier runs; else some are assumed."""

    def dollars(self, price: float) -> float:
        """Return the cost at a price of a GPU's hour."""
        return dollars(self.gpu_seconds, price)


def cost(
    runs: Sequence[tuple[Run, Sequence[str]]], records: Records, *, gpus: int, slots: int
) -> Cost:
    """Return the cost of runs, each with the stages that are left; `gpus` are those of one run."""
    due = {run.keys[stage]: (run, stage) for run, left in runs for stage in left}
    known = seconds_by_stage(records)
    seconds, measured = 0.0, True
    for run, stage in due.values():
        if stage in WITHOUT_GPU:
            continue
        beside = known.get(stage, SECONDS[stage])
        seconds += beside + (training_seconds(run.content, gpus) if stage == "train" else 0.0)
        measured = measured and stage in known
    trainings = sum(stage == "train" for _, stage in due.values())
    begun = sum(bool(left) for _, left in runs)
    # the runs are shared out whole
    rounds = -(-begun // slots) / begun if begun else 0.0
    return Cost(begun, trainings, seconds * gpus, seconds * rounds, measured)


def training_seconds(content: Mapping[str, Any], gpus: int) -> float:
    """Return the seconds of a training's budget, or what its steps are estimated to take."""
    budget: float | None = content["train"]["budget_seconds"]
    if budget is not None:
        return budget
    return sum(part.seconds for part in _stretches(content, gpus))


def training_tokens(content: Mapping[str, Any], gpus: int) -> int:
    """Return the tokens that a training is estimated to read."""
    return sum(part.tokens for part in _stretches(content, gpus))


def _stretches(content: Mapping[str, Any], gpus: int) -> Sequence[Stretch]:
    params = check(content, where="the plan")
    machine = Machine(device=DEVICES[DEVICE], count=gpus)
    return stretches(params.model, params.train, params.tokenizer.vocab_size, machine)


def seconds_by_stage(records: Records) -> dict[str, float]:
    """Return the mean wall seconds of each stage that has run; of training, those beside it."""
    found: dict[str, list[float]] = {}
    for record in records.content["stages"].values():
        beside = record["wall_seconds"]
        if record["stage"] == "train":
            beside -= record["metrics"]["train_seconds"]
        found.setdefault(record["stage"], []).append(beside)
    return {stage: statistics.fmean(values) for stage, values in found.items()}

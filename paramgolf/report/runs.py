"""Several runs for one page: parameters and metrics from Git, logs and ledgers from DVC's cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paramgolf.codec.byte_ledger import Part
from paramgolf.errors import ParamGolfError
from paramgolf.experiments.read import Experiment, Source, find, read, read_outputs
from paramgolf.files import parse_object
from paramgolf.report.inputs import PACKAGE, TrainingLog, parse_ledger, parse_log
from paramgolf.training_log import LOG

MOST_RUNS = 16  # the lines of a chart that can be told apart: eight colors, plain and dashed


@dataclass(frozen=True, slots=True)
class ShownRun(Experiment):
    """A run, its training log, and the parts of its artifact, as package.json has them.

    Both are None where another run made them or the cache does not hold them, `log` also where it
    is not whole.
    """

    log: TrainingLog | None = None
    parts: Sequence[Part] | None = None


def load_runs(
    wanted: Sequence[str], *, everywhere: bool = False
) -> tuple[list[ShownRun], dict[str, str]]:
    """Return the runs, each once, and why others were left out, by name.

    `wanted` is as in `paramgolf.experiments.read.find`. After `dvc exp run` the workspace is the
    same run as the experiment: it counts once.
    """
    sources = find(wanted, everywhere=everywhere)
    chosen: list[tuple[Source, Experiment]] = []
    left_out: dict[str, str] = {}
    for source, experiment in zip(sources, read(sources), strict=True):
        if not experiment.metrics:
            left_out[experiment.name] = "it has no metrics of its own"
        elif not any(_same(experiment, other) for _, other in chosen):
            chosen.append((source, experiment))
    _check_count(chosen, left_out)
    return [_run(source, experiment) for source, experiment in chosen], left_out


def _same(one: Experiment, other: Experiment) -> bool:
    return (one.params, one.metrics) == (other.params, other.metrics)


def _check_count(chosen: Sequence[object], left_out: Mapping[str, str]) -> None:
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        fix = "run the pipeline first, or name experiments (`dvc exp show`)"
        raise ParamGolfError("there is no run to show", found=reasons, fix=fix)
    if len(chosen) > MOST_RUNS:
        raise ParamGolfError(
            "too many runs for one page",
            expected=f"at most {MOST_RUNS}",
            found=len(chosen),
            fix="name those to show; `paramgolf compare` takes any number",
        )


def _run(source: Source, experiment: Experiment) -> ShownRun:
    name, foreign = experiment.name, experiment.foreign
    log, package = read_outputs(source.commit, (LOG, PACKAGE), Path())
    return ShownRun(
        name,
        experiment.params,
        experiment.metrics,
        foreign,
        None if log is None or "train" in foreign else _log(log, name),
        None if package is None or "package" in foreign else _ledger(package, name),
    )


def _log(content: bytes, name: str) -> TrainingLog | None:
    """Return a training log; None where it is not whole, as while training runs."""
    try:
        return parse_log(content, f"{name}: {LOG}")
    except ParamGolfError:
        return None


def _ledger(content: bytes, name: str) -> Sequence[Part]:
    where = f"{name}: {PACKAGE}"
    return parse_ledger(parse_object(content, where), where)

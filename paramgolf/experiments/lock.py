"""Which of a run's metrics are its own, by its dvc.lock.

A run's commit holds the metrics of every stage, also of stages that it did not run: after
`dvc exp run ... package` the scores are still those of an earlier run. A stage belongs to this run
if it was made with the run's parameters and from outputs of stages that belong to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from paramgolf.params import PARAMS_PATH, parse_mapping
from paramgolf.recipes import flatten
from paramgolf.schema import Fault, Foreign, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedFile(Foreign):
    """A file or folder as dvc.lock has it."""

    path: str
    md5: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedStage(Foreign):
    """What a stage was made from and what it made; parameters by file and name."""

    deps: tuple[LockedFile, ...] = ()
    outs: tuple[LockedFile, ...] = ()
    params: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock(Foreign):
    """dvc.lock, as far as it is used."""

    stages: dict[str, LockedStage] = field(default_factory=dict)

    @property
    def makers(self) -> dict[str, str]:
        """The stage that makes each output, by path."""
        return {out.path: name for name, stage in self.stages.items() for out in stage.outs}

    @property
    def sorter(self) -> TopologicalSorter[str]:
        """The stages, each to come after those whose outputs it reads."""
        makers = self.makers
        return TopologicalSorter(
            {
                name: [makers[dep.path] for dep in stage.deps if dep.path in makers]
                for name, stage in self.stages.items()
            }
        )

    def faults(self) -> Iterator[Fault]:
        """Yield what DVC would not write."""
        try:
            self.sorter.prepare()
        except CycleError as error:
            yield "stages", f"depend on one another in a circle: {', '.join(error.args[1])}"


def read_lock(content: bytes, where: str) -> Lock:
    """Read the content of a dvc.lock; `where` names it in messages."""
    fix = "make it again with `dvc repro`"
    return parse(Lock, parse_mapping(content, where), "", where=where, of="the file", fix=fix)


def foreign_stages(lock: Lock, params: Mapping[str, Any]) -> dict[str, str]:
    """Return the stages that do not belong to the run with these parameters, and why.

    `params` are by dotted key. A reason continues the sentence "it was made with". Changes of code
    are not considered.
    """
    makers = lock.makers
    hashes = {out.path: out.md5 for stage in lock.stages.values() for out in stage.outs}
    reasons: dict[str, dict[str, None]] = {}  # of each stage, each reason once, in order
    for name in lock.sorter.static_order():
        stage = lock.stages[name]
        reasons[name] = dict.fromkeys(_other_params(stage, params))
        for dep in stage.deps:
            if dep.path in makers and reasons[makers[dep.path]]:
                reasons[name] |= reasons[makers[dep.path]]
            elif dep.path in makers and dep.md5 != hashes[dep.path]:
                reasons[name][f"another {dep.path}"] = None
    return {name: ", ".join(reasons[name]) for name in lock.stages if reasons[name]}


def _other_params(stage: LockedStage, params: Mapping[str, Any]) -> Iterator[str]:
    used = flatten(stage.params.get(PARAMS_PATH.as_posix(), {}))
    yield from (f"another {key}" for key, value in used.items() if params.get(key) != value)

"""Which of a run's metrics are its own, by its dvc.lock.

A run's commit has the metrics of every stage, those of stages that it did not run too: of
`dvc exp run ... package` the scores are another run's. A stage is of this run if it was made with
the run's parameters, and from outputs that are the run's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from paramgolf.params import PARAMS_PATH
from paramgolf.recipes import flatten
from paramgolf.schema import is_exponent

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


def foreign_stages(lock: bytes, params: Mapping[str, Any]) -> dict[str, str]:
    """Return the stages that are not of the run with these parameters (by dotted key), and why.

    What is said reads on from "it was made with". Edits of code are not looked at.
    """
    stages = yaml.load(lock, LOADER).get("stages", {})
    makers = {out["path"]: name for name, stage in stages.items() for out in _list(stage, "outs")}
    hashes = {
        out["path"]: out.get("md5") for stage in stages.values() for out in _list(stage, "outs")
    }
    own = {name: list(_other_params(stage, params)) for name, stage in stages.items()}
    foreign: dict[str, str] = {}
    for _ in stages:  # the order in the file need not be that of the stages
        before = len(foreign)
        for name, stage in stages.items():
            reasons = list(own[name])
            for path, md5 in ((dep["path"], dep.get("md5")) for dep in _list(stage, "deps")):
                if makers.get(path) in foreign:
                    reasons.append(foreign[makers[path]])
                elif path in hashes and md5 != hashes[path]:
                    reasons.append(f"another {path}")
            if reasons:
                foreign[name] = ", ".join(dict.fromkeys(reasons))
        if len(foreign) == before:
            break
    return foreign


def _other_params(stage: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[str]:
    used = flatten(numbers(stage.get("params", {}).get(PARAMS_PATH.as_posix(), {})))
    yield from (f"another {key}" for key, value in used.items() if params.get(key) != value)


def _list(stage: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return stage.get(key) or []


def numbers(value: Any) -> Any:
    """Return parameters with the numbers that DVC writes as 1e-08, for YAML 1.1 a text."""
    if isinstance(value, Mapping):
        return {key: numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [numbers(inner) for inner in value]
    return float(value) if is_exponent(value) else value

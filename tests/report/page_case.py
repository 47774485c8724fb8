"""Made-up runs and a plan, whose pages the tests look at."""

from __future__ import annotations

import json
from typing import Any

from run_files import ROOT, evaluation, log_lines, metrics, package

from paramgolf.recipes import RECIPES, build, flatten
from paramgolf.report.inputs import parse_ledger, parse_log
from paramgolf.report.runs import ShownRun

PARAMS = flatten(build("sample", folder=ROOT / RECIPES))
SEEDS = (1, 2, 3)
VARIANTS = {"base": (1.10, 1.12, 1.11), "wide & <odd>": (1.09, 1.105, 1.10), "broken": ()}


def made(
    name: str,
    changes: dict[str, Any] | None = None,
    scores: tuple[float, float, float] = (1.7702, 1.7931, 1.8127),
    **parts: Any,
) -> ShownRun:
    """Return a whole run; `scores` are adapted, sliding and packed, `parts` replace fields."""
    adapted, sliding, packed = scores
    by_stage = metrics()
    by_stage["eval_sliding"] = evaluation(sliding, packed, 0)
    by_stage["eval_ttt"] = evaluation(adapted, packed, 93)
    content = "".join(json.dumps(line) + "\n" for line in log_lines(200))
    log = parse_log(content.encode(), name)
    fields = {
        "metrics": flatten(by_stage),
        "log": log,
        "parts": parse_ledger(package(), name),
    } | parts
    return ShownRun(name, {**PARAMS, **(changes or {})}, **fields)


def compared_runs() -> list[ShownRun]:
    """Return two runs that differ."""
    wide = made("wide", {"quantize.mlp_clip": 11.5, "verify.enforce": False}, (1.7603, 1.79, 1.81))
    return [made("base"), wide]


def lab_content() -> dict[str, Any]:
    """Results of three variants; the last one failed."""
    names = [*VARIANTS]
    variants = [
        {"name": n, "reason": "to see", "predicted": 0.001, "recipe": None, "changes": ["a.b=1"]}
        for n in names
    ]
    plan = {"name": "tiny", "recipe": "sample", "variants": variants, "seeds": [*SEEDS]}
    plan |= {"seconds": 400.0, "tokens": None, "gpus": 1, "deviation": 0.0009}
    runs = [
        {"variant": n, "seed": seed, "replicate": 0, "keys": {"train": f"{n}-{seed}"}}
        for n in names
        for seed in SEEDS
    ]
    metrics = {"tokens": 900, "tokens_per_second": 2.0, "device": "GPU", "torch": "2"}
    stages = {
        f"{n}-{seed}": {
            "stage": "train",
            "wall_seconds": 3.0,
            "energy_joules": None,
            "commit": "abc" if n == "base" else "def",
            "metrics": {**metrics, "val_bpb": score},
        }
        for n, scores in VARIANTS.items()
        for seed, score in zip(SEEDS, scores, strict=False)
    }
    failure = {"stage": "train", "reason": "out of memory", "killed": False}
    texts = {n: {"key": "x", "tokens": 100} for n in names}
    return {
        "plans": {"tiny": {"plan": plan, "runs": runs, "texts": texts}},
        "stages": stages,
        "failures": {"broken-1": failure},
    }

"""What a submission lacks: R1 to R11 and R15 of each seed, and R12 to R14 of them all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramgolf.experiments.group import grouped
from paramgolf.experiments.read import SEED, STAGES
from paramgolf.params import read_yaml
from paramgolf.recipes import RECIPES, flatten, nested
from paramgolf.schema import Fault, Foreign, Positive, convert
from paramgolf.submission.about import NON_RECORD, RECORD, About
from paramgolf.submission.collect import SeedRun
from paramgolf.submission.script import one_code
from paramgolf.verify.config import CONTEST_GPU, CONTEST_GPUS
from paramgolf.verify.recorded import RECORDED
from paramgolf.verify.rules import RULES

SEEDS = 3  # of a record
# what verify.allow_normalisation lets pass is what the contest's own tokens do to a text
LIMITS = ("package.limit_bytes", "verify.full_validation")
LIMITS_OF_RECORD = (
    *("verify.train_seconds", "verify.eval_seconds"),
    *("audit.near_copy_share", "audit.allowed_near_copies"),
)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why verify found a rule kept or broken."""

    rule: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verified(Foreign):
    """Metrics of verify."""

    reasons: tuple[Reason, ...]
    rules: dict[str, str]

    def faults(self) -> Iterator[Fault]:
        """Each of the rules has an outcome and a reason."""
        if {*RULES} - {*self.rules} or [each.rule for each in self.reasons] != [*RULES]:
            yield "rules", f"must be of {', '.join(RULES)}"


@dataclass(frozen=True, slots=True)
class Machine(Foreign):
    """What the first line of a training log says."""

    cuda: str | None
    device: str
    python: str
    torch: str
    world_size: Positive


def missing(runs: Sequence[SeedRun], about: About, root: Path) -> Iterator[str]:
    """Yield a line for each thing that must be mended; none: the folder can be made."""
    for option in ("name", "author", "github_id", "blurb"):
        if not getattr(about, option):
            yield f"--{option.replace('_', '-')} is not given"
    limits = flatten(read_yaml(root / RECIPES / "base.yaml"))
    for run in runs:
        faults = [*_senseless(run)]
        if not faults:
            faults = [*_unverified(run), *_other_files(run)]
        faults += _other_limits(run, about.track, limits)
        if about.track == RECORD:
            faults += _other_machine(run)
        yield from (f"`{run.name}`: {fault}" for fault in faults)
    if runs:
        yield from _disagreements(runs, about.track)


def _senseless(run: SeedRun) -> Iterator[str]:
    """What the run does not say, or not in the way that the stages do."""
    content = nested(run.metrics)
    if absent := [stage for stage in STAGES if stage not in content]:
        yield f"no metrics of {', '.join(absent)}: run the whole pipeline with `dvc repro`"
        return
    faults: list[Fault] = []
    for stage, kind in {**RECORDED, "verify": Verified}.items():
        convert(kind, content[stage], stage, faults)
    convert(Machine, run.log.environment, "log", faults)
    yield from (f"metric `{name}` {text}" for name, text in faults)


def _unverified(run: SeedRun) -> Iterator[str]:
    """R1 to R11 and R15, as stage verify found them."""
    for entry in run.metrics["verify.reasons"]:
        rule = entry["rule"]
        if run.metrics[f"verify.rules.{rule}"] == "fail":
            yield f"{rule} is broken, {entry['name']}: {entry['reason']}"


def _other_limits(run: SeedRun, track: str, limits: Mapping[str, Any]) -> Iterator[str]:
    """Limits that verify was told to loosen; those of the contest are in recipes/base.yaml."""
    for key in (*LIMITS, *(LIMITS_OF_RECORD if track == RECORD else ())):
        used, contest = run.params.get(key), limits[key]
        if used != contest:
            yield f"{key} must be {json.dumps(contest)}, as the contest's; it was {used}"


def _other_files(run: SeedRun) -> Iterator[str]:
    for name, key in (("model.bin", "bytes_model"), ("train_gpt.py", "bytes_code")):
        size, recorded = (run.folder / name).stat().st_size, run.metrics.get(f"package.{key}")
        if recorded is not None and size != recorded:
            yield f"{name} has {size:,} bytes, its metrics say {recorded:,}: `dvc repro`"


def _other_machine(run: SeedRun) -> Iterator[str]:
    device, world = run.metrics.get("train.device"), run.metrics.get("train.world_size")
    if CONTEST_GPU not in str(device) or world != CONTEST_GPUS:
        contest = f"{CONTEST_GPUS} x {CONTEST_GPU}"
        yield f"a record is trained on {contest}, this was on {world} x {device}"


def _disagreements(runs: Sequence[SeedRun], track: str) -> Iterator[str]:
    """R12: the seeds are of one system, and there are enough of them."""
    groups = grouped(runs)
    if len(groups) > 1:
        labels = "; ".join(group.label for group in groups)
        yield f"the runs must differ by {SEED} alone, they are {len(groups)} systems: {labels}"
    seeds = [run.seed for run in runs]
    if twice := sorted({str(seed) for seed in seeds if seeds.count(seed) > 1}):
        yield f"seeds that were named more than once: {', '.join(twice)}"
    if not one_code([run.script for run in runs]):
        yield "the runs were made with different code: run them again from one commit"
    if len({(run.folder / "manifest.json").read_bytes() for run in runs}) > 1:
        yield "the runs were scored on different tokens"
    lacking = SEEDS - len(set(seeds))
    if track == RECORD and lacking > 0:
        more = "1 more seed is" if lacking == 1 else f"{lacking} more seeds are"
        fix = f"`dvc exp run -S train.seed=...`, or --track {NON_RECORD}"
        yield f"{more} needed, a record has {SEEDS}: {fix}"

"""A rehearsal: every stage of a recipe at its full shapes, on few tokens, before the costly run.

It fills the compile caches for the run that follows, shows whether the memory suffices, and reveals
a fault within seconds. The scores mean nothing.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramgolf.data.manifests import read_tokens_manifest
from paramgolf.data.token_set import TOKENS_PATH
from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.plan import budget_of
from paramgolf.experiments.lab.stages import Place, Processes, StageError, environment_of
from paramgolf.recipes import Assignment

FOLDER = Path(".cache/rehearsal")
STAGES = ("train", "calibrate", "quantize", "package", "eval_sliding", "eval_ttt")
STEPS = 12  # a recipe's phases begin at shares of them
EVALUATED_TOKENS = 300_000  # of each evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """One stage: its seconds by the clock, and what else its metrics tell; or why it failed."""

    stage: str
    seconds: float | None = None
    startup_seconds: float | None = None
    peak_memory_bytes: int | None = None
    reason: str | None = None


def shortened(content: Mapping[str, Any]) -> list[Assignment]:
    """Return the assignments that shorten a recipe, a whole file of parameters, to a rehearsal.

    Batches, sequences, windows, ranks and layer orders stay: they are what is compiled. Training
    goes through all its phases. Our own coder packs: brotli and LZMA take most of a minute, of
    which a rehearsal learns nothing.
    """
    train, calibrate = content["train"], content["calibrate"]
    tokens = min(STEPS, train["steps"] or STEPS) * train["batch_tokens"]
    sequences = min(calibrate["sequences"], 2 * calibrate["batch_sequences"])
    return [
        *budget_of(content, seconds=None, tokens=tokens, batch_tokens=None),
        ("train.validate_every", 0),
        *((key, "rans") for key in ("quantize.fit_codec", "package.codec")),
        ("calibrate.sequences", sequences),
        ("calibrate.sensitivity_sequences", min(calibrate["sensitivity_sequences"], sequences)),
        *(
            (f"{name}.max_tokens", min(EVALUATED_TOKENS, content[name]["max_tokens"] or math.inf))
            for name in ("eval_sliding", "eval_ttt")
        ),
    ]


def rehearse(content: Mapping[str, Any], root: Path = Path()) -> Iterator[Rehearsed]:
    """Run each stage in a folder of its own in `root`, and yield it; stop at one that fails.

    `content` is a whole file of parameters, shortened. The project's own results are left alone.
    """
    found = read_tokens_manifest(root / TOKENS_PATH)
    if found.vocab_size != content["tokenizer"]["vocab_size"]:
        raise ParamGolfError(
            "the tokens are not those of the recipe",
            where=root / TOKENS_PATH,
            expected=f"a vocabulary of {content['tokenizer']['vocab_size']}",
            found=found.vocab_size,
            fix="paramgolf use RECIPE && dvc repro audit",
        )
    shutil.rmtree(root / FOLDER, ignore_errors=True)  # nothing of another rehearsal is resumed
    place, processes = Place(root / FOLDER), Processes()
    place.prepare(content, root / TOKENS_PATH, {})
    try:
        for stage in STAGES:
            yield _run(stage, place, processes)
    except StageError as error:
        yield Rehearsed(stage=error.stage, reason=error.reason)
    finally:
        processes.stop()


def _run(stage: str, place: Place, processes: Processes) -> Rehearsed:
    seconds = processes.run(stage, place, environment_of(place.folder, None))
    metrics = place.metrics(stage)
    return Rehearsed(
        stage=stage,
        seconds=seconds,
        startup_seconds=metrics.get("startup_seconds"),
        peak_memory_bytes=metrics.get("peak_memory_bytes"),
    )

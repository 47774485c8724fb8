"""Which recipes this machine can run, and in about what time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from paramgolf.doctor.check import Check, ok, warning
from paramgolf.doctor.software import Gpu
from paramgolf.estimate.devices import DEVICES, GIB, kind_of
from paramgolf.estimate.memory import training_memory
from paramgolf.estimate.speed import Machine, Stretch, stretches
from paramgolf.recipes import Params, check, compose, names
from paramgolf.verify.config import CONTEST_GPU, CONTEST_GPUS

CONTEST = Machine(device=DEVICES[CONTEST_GPU], count=CONTEST_GPUS)
LITTLE_SHARE = 0.02  # of the contest's training tokens: too few for a recipe to mean anything
LONG = 24 * 3600.0
HERE = "they need GPUs; `paramgolf use sample` runs here"


def check_recipes(gpus: Sequence[Gpu], memory_bytes: int, folder: Path) -> Iterator[Check]:
    """Check each recipe; those that mean nothing here share one line.

    `memory_bytes` is the machine's own, for a run without GPU.
    """
    kind, beyond = kind_of(gpus[0].name) if gpus else "cpu", []
    for name in names(folder):
        title = f"recipe {name}"
        if kind is None:
            yield ok(title, f"time unknown: {gpus[0].name} is not in estimate/devices.py")
            continue
        params = check(compose(name, folder), where=folder / f"{name}.yaml")
        machine = Machine(device=DEVICES[kind], count=max(1, len(gpus)))
        found = check_recipe(title, params, machine, gpus[0].memory_bytes if gpus else memory_bytes)
        if found is None:
            beyond.append(name)
        else:
            yield found
    if beyond:
        share = f"here they see less than {LITTLE_SHARE:.0%} of their tokens, or take over a day"
        yield warning("recipes", f"{', '.join(beyond)}: {share}", HERE)


def check_recipe(title: str, params: Params, machine: Machine, capacity: int) -> Check | None:
    """Check one recipe on a machine whose devices have `capacity` bytes of memory.

    None: the machine is too slow for the recipe to mean anything.
    """
    run = params.model, params.train, params.tokenizer.vocab_size
    here = stretches(*run, machine)
    share = _tokens(here) / _tokens(stretches(*run, CONTEST))
    steps, seconds = sum(part.steps for part in here), sum(part.seconds for part in here)
    if share < LITTLE_SHARE or seconds > LONG:
        return None
    memory = training_memory(*run, machine).total
    text = f"{steps:,} steps in about {duration(seconds)}"
    if share < 1:
        text += f", {share:.1%} of the tokens of 8 H100"
    if params.train.precision == "fp8_mlp" and not machine.device.fused_kernels:
        text += "; FP8 is imitated, slower than bf16"
        return warning(title, text, "set train.precision to bf16")
    if memory > capacity:
        sizes = f"{memory / GIB:.0f} GiB of memory, {capacity / GIB:.0f} are there"
        return warning(title, f"{text}; needs {sizes}", "lower train.micro_batch_tokens")
    return ok(title, text)


def _tokens(parts: Sequence[Stretch]) -> int:
    return sum(part.tokens for part in parts)


def duration(seconds: float) -> str:
    """Return seconds in a unit that reads well."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"

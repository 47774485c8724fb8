"""What a file of results must hold, so that it can be shown, taken and gone on with.

Entries that the laboratory has written have more; files come from other machines and versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from paramgolf.experiments.lab.screening import ORDERS
from paramgolf.experiments.lab.summary import METRICS
from paramgolf.schema import Fault, Foreign, Natural, NaturalFloat, Positive

NEEDED = ("device", "torch", "tokens", "train_seconds")  # of a training's metrics
TEXTS = ("device", "torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures(Foreign):
    """What a stage found; energy is that of its GPUs, of which a CPU has none.

    `alike` is the key but for code, `before` has the keys of the stages whose outputs it took.
    """

    stage: str
    wall_seconds: NaturalFloat
    metrics: dict[str, Any]
    energy_joules: NaturalFloat | None = None
    gpus: str | None = None
    alike: str | None = None
    before: tuple[str, ...] = ()
    commit: str | None = None

    def faults(self) -> Iterator[Fault]:
        """Yield the metrics that are missing, or that are not of their kind."""
        needed = NEEDED if self.stage == "train" else ()
        for name in needed:
            if name not in self.metrics:
                yield f"metrics.{name}", "is missing"
        numbers = {*(key for stage, key in METRICS.values() if stage == self.stage), *needed}
        for name in {*numbers, *TEXTS} & self.metrics.keys():
            value = self.metrics[name]
            if name in TEXTS and not isinstance(value, str):
                yield f"metrics.{name}", "must be a text"
            elif name not in TEXTS and type(value) not in (int, float, type(None)):
                yield f"metrics.{name}", "must be a number"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Foreign):
    """Why a stage failed, and whether it was killed."""

    stage: str
    reason: str
    killed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EnteredFactor(Foreign):
    """A factor of a screening."""

    name: str
    reason: str
    predicted: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnteredVariant(EnteredFactor):
    """A variant of a plan; of a run of a screening, the factors that are on."""

    factors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EnteredPlan(Foreign):
    """A plan as it was run."""

    name: str
    variants: tuple[EnteredVariant, ...]
    factors: tuple[EnteredFactor, ...] = ()
    seeds: tuple[int, ...]
    seconds: NaturalFloat | None
    tokens: Natural | None
    gpus: Positive
    deviation: NaturalFloat

    def faults(self) -> Iterator[Fault]:
        """Yield what a plan cannot be without."""
        if not self.variants:
            yield "variants", "must name at least one"
        if self.seconds is None and self.tokens is None:
            yield "seconds", "or `tokens` must be given"
        if self.factors and len(self.variants) not in ORDERS:
            yield "variants", f"must be as many as a design has runs, found {len(self.variants)}"
        known = {factor.name for factor in self.factors}
        for i, variant in enumerate(self.variants):
            if unknown := {*variant.factors} - known:
                yield f"variants.{i}.factors", f"must be of the plan, found {min(unknown)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnteredRun(Foreign):
    """A run, and the key of each of its stages."""

    variant: str
    seed: int
    replicate: Natural
    keys: dict[str, str]

    def faults(self) -> Iterator[Fault]:
        """Yield what a run cannot be without."""
        if "train" not in self.keys:
            yield "keys.train", "is missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnteredText(Foreign):
    """The tokens of a variant."""

    key: str
    tokens: Natural


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEntry(Foreign):
    """A plan, and what its variants were trained on and with."""

    plan: EnteredPlan
    command: str
    parameters: dict[str, dict[str, Any]]
    texts: dict[str, EnteredText]
    runs: tuple[EnteredRun, ...]

    def faults(self) -> Iterator[Fault]:
        """Yield the variants of which nothing is known."""
        for variant in self.plan.variants:
            for name in ("parameters", "texts"):
                if variant.name not in getattr(self, name):
                    yield f"{name}.{variant.name}", "is missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Results(Foreign):
    """A file of results."""

    schema: Natural
    plans: dict[str, PlanEntry]
    stages: dict[str, Figures]
    failures: dict[str, Failed]

"""A plan of the laboratory: which variants of recipes are compared, on what, for how long.

A YAML file; docs/lab.md explains it. Every variant becomes a whole set of parameters here, checked
as `paramgolf use` checks them, before anything runs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.screening import MOST_FACTORS, ORDERS, design, order_of
from paramgolf.experiments.paired import ASSUMED
from paramgolf.params import read_yaml
from paramgolf.recipes import Assignment, build, compose, merge, read_assignment
from paramgolf.schema import (
    Fault,
    NaturalFloat,
    Positive,
    PositiveFloat,
    Range,
    Seed,
    Spelling,
    convert,
    parse,
    raise_faults,
)

Goal = Literal["trained", "packed", "scored", "adapted"]
# what is run until a goal is reached, in this order; `packed` scores the package without overlap
STAGES: dict[Goal, tuple[str, ...]] = {
    "trained": ("train",),
    "packed": ("train", "calibrate", "quantize", "package", "packed"),
    "scored": ("train", "calibrate", "quantize", "package", "packed", "eval_sliding"),
    "adapted": ("train", "calibrate", "quantize", "package", "packed", "eval_sliding", "eval_ttt"),
}
# of each pair a plan has one; which one, it may say otherwise than the plan that it is from
EITHER = ("seconds", "tokens"), ("variants", "factors")
PUBLISHED_STEPS = 5000  # about what the records take in their 600 s
Name = Annotated[str, Spelling(r"[\w][\w .,:;+=()#'/&%-]{0,79}", "a name of at most 80 characters")]
FileName = Annotated[str, Spelling(r"[\w][\w-]{0,63}", "letters, digits, - and _, as of a file")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What is tried: changes as `paramgolf use` takes them, of the plan's recipe or another."""

    name: Name
    reason: str = ""
    predicted: float | None = None
    """Bits per byte, this variant minus the first of the plan, as guessed before it ran."""
    recipe: str | None = None
    changes: tuple[str, ...] = ()
    goal: Goal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """What is tried in half of a screening's runs."""

    name: Name
    changes: tuple[str, ...]
    reason: str = ""
    predicted: float | None = None
    """Bits per byte, runs with it minus runs without, as guessed before they ran."""

    @property
    def keys(self) -> set[str]:
        """The keys that it changes."""
        return {change.partition("=")[0] for change in self.changes}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreeningRun(Variant):
    """A run of a screening, a variant with the changes of all `factors` that are on."""

    factors: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What is trained and scored on: files of text, or a folder of tokens that is there."""

    files: tuple[str, ...] = ()
    validation_files: tuple[str, ...] = ()
    tokenizers: str | None = None
    """Folder in which tokenizers are kept, as sp8192_caseops.model; missing ones are trained."""
    tokens: str | None = None
    """Folder as data/tokens, for all variants."""

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the fields together."""
        if bool(self.files) == (self.tokens is not None):
            yield "files", "or `tokens` must be given, and not both"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Variants, and what they have in common; the first variant is what others are held against.

    With `factors` the variants are the runs of a screening, which `screened` makes of them.
    """

    name: FileName
    recipe: str
    text: Text
    seeds: tuple[Seed, ...]
    """One training of each variant a seed; a seed that comes twice is run twice."""
    variants: tuple[Variant, ...] = ()
    factors: tuple[Factor, ...] = ()
    runs: Annotated[int, Range(1, ORDERS[-1])] | None = None
    """Of the factors and a seed, at least; None: as few as there can be."""
    seconds: PositiveFloat | None = None
    """Of each training."""
    tokens: Positive | None = None
    """Of each training, instead of seconds."""
    batch_tokens: Positive | None = None
    """Of a step, with which later phases of a curriculum are scaled; None: the recipe's."""
    gpus: Annotated[int, Range(1, 1024)] = 1
    """That one run takes."""
    goal: Goal = "scored"
    common: tuple[str, ...] = ()
    """Changes of every variant."""
    deviation: NaturalFloat = ASSUMED
    """Of one run's bits per byte from seed to seed, until two seeds of a variant have shown it."""

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the fields together."""
        if (self.seconds is None) == (self.tokens is None):
            yield "seconds", "or `tokens` must be given, and not both"
        if bool(self.variants) == bool(self.factors):
            yield "variants", "or `factors` must be given, and not both"
        for field, named in (("variants", self.variants), ("factors", self.factors)):
            names = [one.name for one in named]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                yield field, f"must have different names, found twice: {', '.join(twice)}"
        if self.runs is not None and not self.factors:
            yield "runs", "is of a plan with `factors`"
        if len(self.factors) > MOST_FACTORS:
            yield "factors", f"must be at most {MOST_FACTORS}, found {len(self.factors)}"
        for one, other in itertools.combinations(self.factors, 2):
            for key in sorted(one.keys & other.keys):
                both = f"`{one.name}` and `{other.name}`"
                yield "factors", f"must each have keys of its own, found {key} in {both}"
        if not self.seeds:
            yield "seeds", "must name at least one"

    def variant(self, name: str) -> Variant:
        """Return a variant by its name."""
        return next(variant for variant in self.variants if variant.name == name)

    def chosen(self, only: Sequence[str] | None) -> tuple[Variant, ...]:
        """Return the variants of these names, and the first, which they are held against.

        None: all of them. A name that no variant has is an error, and so is a part of a screening.
        """
        if only is None:
            return self.variants
        if self.factors:
            fix = "leave out --only: what has run already is not run again"
            raise ParamGolfError(
                "a plan with factors is run and shown whole: an effect is of all runs", fix=fix
            )
        names = [variant.name for variant in self.variants]
        if unknown := [name for name in only if name not in names]:
            expected, found = f"one of: {'; '.join(names)}", "; ".join(unknown)
            raise ParamGolfError("there is no such variant", expected=expected, found=found)
        return tuple(v for v in self.variants if v.name in only or v is self.variants[0])

    def stages(self, variant: Variant) -> tuple[str, ...]:
        """Return the stages that a variant's runs go through."""
        return STAGES[variant.goal or self.goal]


def read_plan(path: Path) -> Plan:
    """Read a plan; all faults of its fields are in one ParamGolfError.

    What it does not say, but for its name, it takes from the plan beside it that `from` names.
    """
    content, seen, file = read_yaml(path), [path.stem], path
    while (other := content.pop("from", None)) is not None:
        if other in seen:
            raise ParamGolfError("plans inherit in a circle", where=path, found=f"from: {other}")
        file = _beside(file, other)
        seen.append(other)
        below = read_yaml(file)
        below.pop("name", None)  # under which the results have that plan
        said = {key for pair in EITHER if not content.keys().isdisjoint(pair) for key in pair}
        content = merge({k: v for k, v in below.items() if k not in said}, content)
    return screened(parse(Plan, content, "", where=path, of="the plan", fix="see docs/lab.md"))


def screened(plan: Plan) -> Plan:
    """Return a plan that has factors with the runs of their design; others as they are."""
    if not plan.factors:
        return plan
    runs = []
    order = order_of(len(plan.factors), plan.runs or 0)
    for number, columns in enumerate(design(order), start=1):
        # unused columns come last
        on = [one for one, is_on in zip(plan.factors, columns, strict=False) if is_on]
        changes = tuple(change for one in on for change in one.changes)
        names = tuple(one.name for one in on)
        runs.append(ScreeningRun(name=f"screen {number:02}", changes=changes, factors=names))
    return dataclasses.replace(plan, variants=tuple(runs))


def _beside(path: Path, other: object) -> Path:
    """Return the file of another plan in the folder of the one at `path`, which is `from` it."""
    faults: list[Fault] = []
    name = convert(FileName, other, "from", faults)
    if faults:
        raise_faults(faults, path, of="the plan", fix="name a plan of the same folder")
    return path.with_name(f"{name}.yaml")


def contents(plan: Plan, changes: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the parameters of each variant by its name, with the first seed.

    `changes` come last, as of the command line. One ParamGolfError lists the variants at fault, or
    the factors: those that no recipe could have alone, or that change nothing.
    """
    if plan.factors:
        _check_factors(plan, changes)
    found, faults = {}, defaultdict[str, list[str]](list)
    for variant in plan.variants:
        try:
            found[variant.name] = _content(plan, variant, changes)
        except ParamGolfError as error:
            faults[str(error)].append(f"`{variant.name}`")
    if faults:
        # what is wrong with all of them is said once
        said = [f"variant {', '.join(names)}: {fault}" for fault, names in faults.items()]
        raise ParamGolfError("\n".join(said), where=f"plan {plan.name}")
    return found


def _check_factors(plan: Plan, changes: Sequence[str]) -> None:
    plain, faults = _content(plan, Variant(name=plan.name), changes), []
    for factor in plan.factors:
        try:
            alone = Variant(name=factor.name, changes=factor.changes)
            if _content(plan, alone, changes) == plain:
                faults.append(f"factor `{factor.name}` changes nothing")
        except ParamGolfError as error:
            faults.append(f"factor `{factor.name}`: {error}")
    if faults:
        raise ParamGolfError("\n".join(faults), where=f"plan {plan.name}")


def _content(plan: Plan, variant: Variant, changes: Sequence[str]) -> dict[str, Any]:
    recipe, own = variant.recipe or plan.recipe, [*variant.changes, *changes]
    given = assignments(plan, recipe, own)
    content = build(recipe, given)
    if plan.tokens is None or "train.steps" in dict(map(read_assignment, [*plan.common, *own])):
        return content
    return build(recipe, [*given, ("train.steps", _steps_of(content["train"], plan.tokens))])


def _steps_of(train: Mapping[str, Any], tokens: int) -> int:
    """Return the steps in which batches of these sizes, each for its share, read so many."""
    sizes = [{"at": 0.0, "batch_tokens": train["batch_tokens"]}, *train["curriculum"], {"at": 1.0}]
    read = sum(
        (after["at"] - one["at"]) * one["batch_tokens"] for one, after in itertools.pairwise(sizes)
    )
    return max(1, int(tokens / read + 1e-9))


def assignments(plan: Plan, recipe: str, changes: Sequence[str] = ()) -> list[Assignment]:
    """Return what a plan sets in a recipe, in its order; `changes` come after those of all."""
    budget = budget_of(
        compose(recipe),
        seconds=plan.seconds,
        tokens=plan.tokens,
        batch_tokens=plan.batch_tokens,
        gpus=plan.gpus,
    )
    own = [("train.seed", plan.seeds[0]), ("runtime.processes", plan.gpus)]
    changed = [*map(read_assignment, [*plan.common, *changes])]
    for (key, _), field in zip(own, ("seeds", "gpus"), strict=True):
        if key in dict(changed):
            raise ParamGolfError(f"`{key}` is no change: `{field}` of the plan says it")
    return [*budget, *_text_of(plan.text), *changed, *own]


def budget_of(
    content: Mapping[str, Any],
    *,
    seconds: float | None,
    tokens: int | None,
    batch_tokens: int | None,
    gpus: int = 1,
) -> list[Assignment]:
    """Return the assignments by which a recipe trains for so many seconds or tokens.

    Points that the recipe gives in steps become shares of PUBLISHED_STEPS. `batch_tokens` are those
    of a step, None: the recipe's; each of the `gpus` gets a part of them.
    """
    train, model = content["train"], content["model"]
    batch = batch_tokens or train["batch_tokens"]
    changed = {
        "train.steps": None if tokens is None else max(1, tokens // batch),
        "train.budget_seconds": seconds,
        "train.reserve_seconds": 0.0,
        "train.batch_tokens": batch,
        "train.curriculum": [
            {**sizes, "batch_tokens": sizes["batch_tokens"] * batch // train["batch_tokens"]}
            for sizes in train["curriculum"]
        ],
    }
    if train["micro_batch_tokens"] != "auto":
        changed["train.micro_batch_tokens"] = min(batch // gpus, train["micro_batch_tokens"])
    if train["warmdown_unit"] == "steps":
        share = min(1.0, train["warmdown"] / PUBLISHED_STEPS)
        changed |= {"train.warmdown_unit": "fraction", "train.warmdown": share}
    if model["recurrence_unit"] == "step":
        phases = [{**one, "at": one["at"] / PUBLISHED_STEPS} for one in model["recurrence"]]
        changed |= {"model.recurrence_unit": "fraction", "model.recurrence": phases}
    return list(changed.items())


def _text_of(text: Text) -> list[Assignment]:
    """Return the assignments of the text; where tokens are there, nothing reads them."""
    files = text.files or (f"{text.tokens}",)
    return [
        ("data.source", "files"),
        ("data.files", list(files)),
        ("data.validation_files", list(text.validation_files)),
        ("tokenizer.source", "train"),
    ]

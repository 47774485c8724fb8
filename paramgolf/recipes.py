"""Recipes: overlays over recipes/base.yaml that `paramgolf use` writes into params.yaml.

Checking a whole parameter file needs every section's dataclass, so only the command line imports
this module, never a stage: a stage depends on its own sections alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from paramgolf.codec.config import PackageConfig
from paramgolf.data.config import AuditConfig, DataConfig, TokenizerConfig
from paramgolf.errors import ParamGolfError
from paramgolf.files import read_text
from paramgolf.model.config import ModelConfig
from paramgolf.params import PARAMS_PATH, parse_yaml, read_yaml, yaml_fault
from paramgolf.quant.config import CalibrateConfig, QuantizeConfig
from paramgolf.runtime_config import RuntimeConfig
from paramgolf.schema import Fault, convert, raise_faults
from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.training.config import TrainConfig
from paramgolf.verify.config import VerifyConfig

RECIPES = Path("recipes")
NOT_RECIPES = ("base", "differences", "records")
# of any number with a point: float32 holds it, and what a step multiplies it by
LARGEST = 1e30
# of any whole number: positions of a tensor are counted in 32 bits; these are no sizes of one
MOST, LONGER = 2**31 - 1, ("seed", "bytes", "max_tokens", "validation_tokens", "primer_tokens")
FIDELITY = "fidelity"  # no parameter: as an assignment, `published` restores what was published
Assignment = tuple[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """A whole parameter file, a field a section."""

    data: DataConfig
    tokenizer: TokenizerConfig
    audit: AuditConfig
    model: ModelConfig
    train: TrainConfig
    calibrate: CalibrateConfig
    quantize: QuantizeConfig
    package: PackageConfig
    eval_sliding: SlidingConfig
    eval_ttt: TttConfig
    verify: VerifyConfig
    runtime: RuntimeConfig


def check(content: Mapping[str, Any], *, where: object) -> Params:
    """Check every section and what they must agree on; raise one error that lists all faults."""
    params, faults = inspect(content)
    if params is None or faults:
        raise_faults(faults, where)
    return params


def inspect(content: Mapping[str, Any]) -> tuple[Params | None, list[Fault]]:
    """Return the typed parameters (None where that cannot be) and every fault of `content`."""
    faults: list[Fault] = []
    params: Params | None = convert(Params, content, "", faults)
    if params is not None:
        faults.extend(_too_large(dataclasses.asdict(params), ""))
        faults.extend(_disagreements(params))
    return params, faults


def _too_large(value: Any, name: str) -> Iterator[Fault]:
    """Yield the numbers with which the arithmetic of a stage would overflow, hours later."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from _too_large(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, float) and abs(value) > LARGEST:
        yield name, f"must be at most {LARGEST:g}, found {value}"
    elif isinstance(value, int) and value > MOST and not name.endswith(LONGER):
        yield name, f"must be at most {MOST}, found {value}"


def _disagreements(params: Params) -> Iterator[Fault]:
    """Yield what sections must agree on; what one of them must be by itself it says itself."""
    published = params.data.source == "hub" and params.data.hub.kind == "shards"
    if published != (params.tokenizer.source == "published"):
        yield (
            "tokenizer.source",
            "must be published exactly when data.source is hub and data.hub.kind is shards, "
            f"found {params.tokenizer.source}",
        )
    together, heads = params.train.muon_kv_heads, params.model.kv_heads
    if together and heads % together:
        yield "train.muon_kv_heads", f"must divide `model.kv_heads` {heads}, found {together}"
    fit, package = params.quantize, params.package
    if fit.balance and not params.calibrate.sensitivity_sequences:
        yield "quantize.balance", "needs `calibrate.sensitivity_sequences` of at least 1"
    if fit.trellis and (package.codec not in ("rans", "auto") or package.prune):
        yield (
            "quantize.trellis",
            "needs `package.codec` rans or auto, and `package.prune` false",
        )
    if fit.fit_bytes is not None:
        if fit.fit_codec != package.codec:
            expected = f"must be `package.codec` ({package.codec})"
            yield "quantize.fit_codec", f"{expected}, found {fit.fit_codec}"
        if fit.fit_bytes > package.limit_bytes:
            yield "quantize.fit_bytes", "must be at most `package.limit_bytes`"


def compose(name: str, folder: Path = RECIPES) -> dict[str, Any]:
    """Return the recipe `name` with all that it inherits through `from`."""
    layers: dict[str, dict[str, Any]] = {}
    parent: str | None = name
    while parent is not None:
        if parent in layers:
            chain = " -> ".join([*layers, parent])
            raise ParamGolfError("recipes inherit in a circle", where=folder, found=chain)
        path = folder / f"{parent}.yaml"
        if not path.is_file():
            known = ", ".join(names(folder))
            fix = f"choose one of: {known}" if known else "run in the project's folder"
            raise ParamGolfError(f"there is no recipe `{parent}`", where=folder, fix=fix)
        layers[parent] = read_yaml(path)
        parent = layers[parent].pop("from", None)
        if not isinstance(parent, str | None):
            fix = "name one recipe in `from`"
            raise ParamGolfError("`from` is no name", where=path, found=str(parent), fix=fix)
    return functools.reduce(merge, reversed(layers.values()))


def read_records(folder: Path = RECIPES) -> dict[str, Any]:
    """Return what was published, by the name of its record; recipes/records.yaml tells its keys."""
    return read_yaml(folder / "records.yaml")


def unknown_record(name: str, records: Iterable[str], kind: str = "record") -> ParamGolfError:
    """Return the error for a name that is no record; `kind` says what else it could be."""
    fix = f"name a {kind}; records: {', '.join(records)}"
    return ParamGolfError(f"there is no {kind} `{name}`", fix=fix)


def names(folder: Path = RECIPES) -> list[str]:
    """Return the names of all recipes; base, the differences and the records are none."""
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem not in NOT_RECIPES)


def describe(name: str, folder: Path = RECIPES) -> str:
    """Return the first line of a recipe's file, a comment that says what it is."""
    first = read_text(folder / f"{name}.yaml").split("\n", 1)[0]
    return first.lstrip("# ")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What some recipes do otherwise than the published code, on purpose.

    `restore` holds the parameters, by dotted key, that bring the published behavior back;
    `settings` the published settings that it concerns, as tests/fixtures names them.
    """

    recipes: tuple[str, ...]
    theirs: str
    ours: str
    why: str
    restore: dict[str, Any] = dataclasses.field(default_factory=dict)
    effect: str = "not measured"
    settings: tuple[str, ...] = ()


def differences(name: str | None = None, folder: Path = RECIPES) -> list[Difference]:
    """Return the differences of the recipe `name`, or of all, from what was published."""
    path = folder / "differences.yaml"
    faults: list[Fault] = []
    found = convert(tuple[Difference, ...], parse_yaml(read_text(path)), "", faults)
    if faults:
        raise_faults(faults, path, of="the differences")
    return [entry for entry in found if name is None or name in entry.recipes]


def _restored(name: str, value: Any, folder: Path) -> list[Assignment]:
    """Return the assignments that `fidelity=published` stands for."""
    found = differences(name, folder)
    if value != "published" or not found:
        known = sorted({recipe for entry in differences(folder=folder) for recipe in entry.recipes})
        raise ParamGolfError(
            f"`{FIDELITY}` is `published`, for a recipe of a published system",
            where=f"recipe {name}",
            expected=f"{FIDELITY}=published and one of {', '.join(known)}",
            found=f"{FIDELITY}={value}",
        )
    return [assignment for entry in found for assignment in entry.restore.items()]


def read_assignment(text: str) -> Assignment:
    """Read `section.key=value`; the value is YAML, as with `dvc exp run -S`."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        fix = "write section.key=value, such as train.seed=314"
        raise ParamGolfError(f"`{text}` is not a change of a parameter", fix=fix)
    try:
        return key, parse_yaml(value)
    except yaml.YAMLError as error:
        raise ParamGolfError("not a YAML value", where=key, found=yaml_fault(error)) from None


def build(
    name: str, assignments: Sequence[Assignment] = (), folder: Path = RECIPES
) -> dict[str, Any]:
    """Return recipe `name` with the assignments made, checked whole and in the order of base.yaml.

    Numbers come in their parameter's type (600 as 600.0). `fidelity=published` stands for the
    parameters by which the recipe does all that its system's published code does, as far as ours
    offers it. All faults are in one ParamGolfError.
    """
    changes = [assignment for assignment in assignments if assignment[0] != FIDELITY]
    for key, value in assignments:
        if key == FIDELITY:  # first, so that a parameter that is named wins
            changes = [*_restored(name, value, folder), *changes]
    plain = changed(compose(name, folder), changes, f"recipe {name}")
    return _in_order_of(compose("base", folder), plain)


def chosen(name: str | None, words: Sequence[str]) -> tuple[str, Sequence[str], dict[str, Any]]:
    """Return what a command's words choose: its title, the changes, and all parameters, checked.

    Without a name, or where it is the first change (section.key=value), that is params.yaml.
    """
    if name is not None and "=" not in name:
        return name, words, build(name, [read_assignment(text) for text in words])
    words = words if name is None else [name, *words]
    content = read_yaml(PARAMS_PATH)
    check(content, where=PARAMS_PATH)
    changes = [read_assignment(text) for text in words]
    return str(PARAMS_PATH), words, changed(content, changes, PARAMS_PATH)


def changed(
    content: dict[str, Any], changes: Sequence[Assignment], where: object
) -> dict[str, Any]:
    """Make the changes in `content`, and return it checked, numbers in their parameter's type."""
    unknown = [fault for key, value in changes for fault in _assign(content, key, value)]
    params, faults = inspect(content)
    if params is None or unknown or faults:
        raise_faults(unknown + faults, where)
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(params)))  # tuples to lists
    return plain


def _assign(content: dict[str, Any], key: str, value: Any) -> Iterator[Fault]:
    known = flatten(content)
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        advice = f"; did you mean `{near[0]}`?" if near else ""
        if any(other.startswith(f"{key}.") for other in known):
            advice = "; it is a section, name one of its keys"
        yield key, f"is not a parameter{advice}"
        return
    *path, last = key.split(".")
    for part in path:
        content = content[part]
    content[last] = value


def _in_order_of(template: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _in_order_of(inner, content[key]) if isinstance(inner, Mapping) else content[key]
        for key, inner in template.items()
    }


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values by dotted key; a list is one value."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        inner = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections whose values `flatten` gave by dotted key."""
    content: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        place = content
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return content


ABSENT = "(absent)"  # as the text of a value that is not there


def as_text(value: Any) -> str:
    """Return a parameter or metric as people read it: a text bare, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with the values of `above` in their places; lists are replaced whole."""
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = merge(inner, value)
        merged[key] = value
    return merged

"""Frozen dataclasses as schemas: what YAML and JSON hold becomes typed values, or named faults.

A field's type says what it takes, an `Annotated` type also in which bounds; what fields must be
together a dataclass says in a method `faults`. All faults are listed in one error. PyYAML reads
the `1e-05` that DVC writes as a string; float fields accept it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import reprlib
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

from paramgolf.errors import ParamGolfError

Record = TypeVar("Record")
Fault = tuple[str, str]
"""The dotted name of a field, and what is wrong with it: ("heads", "must divide `width`")."""


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a number, declared with its field: `Annotated[int, Range(1)]`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def admits(self, value: float) -> bool:
        """Tell whether a number lies within the bounds."""
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"lie in {self.least}..{self.most}"
        words = {"at least": self.least, "above": self.above, "at most": self.most}
        words["below"] = self.below
        bounds = (f"{word} {bound}" for word, bound in words.items() if bound is not None)
        return f"be {' and '.join(bounds)}"


Positive = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]
PositiveFloat = Annotated[float, Range(above=0)]
NaturalFloat = Annotated[float, Range(0)]
# what every library here takes as a seed; numpy's and torch's generators refuse negative ones
Seed = Annotated[int, Range(0, 2**32 - 1)]


@runtime_checkable
class Judged(Protocol):
    """A dataclass that says what its fields must be together."""

    def faults(self) -> Iterator[Fault]:
        """Yield each field that does not go with the others, and what is wrong with it."""


def parse(record: type[Record], content: Any, name: str, *, where: object = None) -> Record:
    """Build `record` from a mapping; all faults are reported in one ParamGolfError."""
    faults: list[Fault] = []
    value = convert(record, content, name, faults)
    if faults:
        raise_faults(faults, where)
    assert isinstance(value, record)
    return value


def raise_faults(faults: list[Fault], where: object) -> typing.NoReturn:
    """Raise one error that lists every fault."""
    count = "a fault" if len(faults) == 1 else f"{len(faults)} faults"
    listing = "".join(f"\n  - `{name}` {text}" for name, text in faults)
    raise ParamGolfError(f"{count} in the parameters{listing}", where=where)


def convert(kind: Any, value: Any, name: str, faults: list[Fault]) -> Any:
    """Convert a value to the annotated type `kind`, or note what is wrong with it.

    `name` is the value's dotted name; it is empty for the root of a file.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, value, name, faults)
    if origin is Annotated:
        return _convert_bounded(arguments[0], arguments[1], value, name, faults)
    if origin is typing.Literal:
        if type(value) is bool and {"on", "off"} <= {*arguments}:  # as YAML 1.1 reads the two words
            value = "on" if value else "off"
        if any(value == one and type(value) is type(one) for one in arguments):
            return value
        return _note(name, "one of " + ", ".join(map(str, arguments)), value, faults)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        words = [a for a in arguments if typing.get_origin(a) is typing.Literal]
        if any(value in typing.get_args(word) for word in words):
            return value
        (inner,) = (a for a in arguments if a is not type(None) and a not in words)
        return convert(inner, value, name, faults)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return _note(name, "a list", value, faults)
        pairs = enumerate(value)
        return tuple(convert(arguments[0], item, f"{name}.{i}", faults) for i, item in pairs)
    return _convert_scalar(kind, value, name, faults)


def _convert_bounded(
    kind: Any, bounds: Range, value: Any, name: str, faults: list[Fault]
) -> int | float | None:
    number: int | float | None = convert(kind, value, name, faults)
    if number is not None and not bounds.admits(number):
        faults.append((name, f"must {bounds}, found {_shown(value)}"))
    return number


def _convert_scalar(kind: Any, value: Any, name: str, faults: list[Fault]) -> Any:
    if kind is float and type(value) in (int, float):
        # an int may exceed all floats: it is compared before it is converted
        if abs(value) <= sys.float_info.max:
            return float(value)
    elif kind is float and is_exponent(value):
        if math.isfinite(number := float(value)):
            return number
    elif type(value) is kind:
        return value
    words = {int: "a whole number", bool: "true or false", str: "a text", float: "a number"}
    return _note(name, words[kind], value, faults)


def is_exponent(value: Any) -> bool:
    """Tell whether `value` is what PyYAML makes of the 1e-05 that DVC writes: a text."""
    return (
        isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value) is not None
    )


def _convert_dataclass(kind: Any, value: Any, name: str, faults: list[Fault]) -> Any:
    if not isinstance(value, Mapping):
        return _note(name, "a mapping", value, faults)
    hints = typing.get_type_hints(kind, include_extras=True)
    before = len(faults)
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            known = f"known: {', '.join(hints)}"
            advice = f"did you mean `{_inside(name, near[0])}`?" if near else known
            faults.append((_inside(name, key), f"is not a parameter; {advice}"))
    fields = {}
    for key, hint in hints.items():
        if key not in value:
            faults.append((_inside(name, key), "is missing"))
        else:
            fields[key] = convert(hint, value[key], _inside(name, key), faults)
    if len(faults) > before:
        return None
    built = kind(**fields)
    if isinstance(built, Judged):
        faults.extend((_inside(name, field), text) for field, text in built.faults())
    return built


def _inside(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _note(name: str, expected: str, value: Any, faults: list[Fault]) -> None:
    faults.append((name, f"must be {expected}, found {_shown(value)}"))


def _shown(value: Any) -> str:
    """Return a value as a message shows it: enough to be recognised, however long it is."""
    return reprlib.repr(value)

"""Frozen dataclasses as schemas: what YAML and JSON hold becomes typed values, or named faults.

A field's type says what it takes, an `Annotated` type also in which bounds; what fields must be
together a dataclass says in a method `faults`. A field with a default may be missing. All faults
are listed in one error. PyYAML, by which train_gpt.py reads its options, takes `1e-05` for a text;
float fields accept it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

from paramgolf.errors import ParamGolfError
from paramgolf.files import read_json

Record = TypeVar("Record")
Fault = tuple[str, str]
"""The dotted name of a field, and what is wrong with it: ("heads", "must divide `width`")."""
MOST_SHOWN = 50  # faults of one file that a message lists


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


@dataclasses.dataclass(frozen=True, slots=True)
class Spelling:
    """How a text is written, declared with its field; `words` say it in a message."""

    pattern: str
    words: str

    def admits(self, value: str) -> bool:
        """Tell whether all of a text is written so."""
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return f"be {self.words}"


Positive = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]
PositiveFloat = Annotated[float, Range(above=0)]
NaturalFloat = Annotated[float, Range(0)]
# what every library here takes as a seed; numpy's and torch's generators refuse negative ones
Seed = Annotated[int, Range(0, 2**32 - 1)]
# inside the folder of the manifest that names it, whoever wrote that
FileName = Annotated[str, Spelling(r"(?!\.)[\w.-]{1,200}", "the name of a file in the folder")]
Sha256 = Annotated[str, Spelling(r"[0-9a-f]{64}", "a SHA-256 in hexadecimal")]


class Foreign:
    """Base of a dataclass for what others write: keys that are not its fields are left alone."""

    __slots__ = ()


@runtime_checkable
class Judged(Protocol):
    """A dataclass that says what its fields must be together."""

    def faults(self) -> Iterator[Fault]:
        """Yield each field that does not go with the others, and what is wrong with it."""


def parse(
    record: type[Record],
    content: Any,
    name: str,
    *,
    where: object = None,
    of: str = "the parameters",
    fix: str | None = None,
) -> Record:
    """Build `record` from a mapping; all faults are reported in one ParamGolfError."""
    faults: list[Fault] = []
    value = convert(record, content, name, faults)
    if faults:
        raise_faults(faults, where, of=of, fix=fix)
    assert isinstance(value, record)
    return value


def read_record(record: type[Record], path: str | Path, *, version: int, fix: str) -> Record:
    """Read a JSON file of the project, whose `schema` must be `version`, as a dataclass."""
    content = read_json(path, fix=fix)
    if content.get("schema") != version:
        raise ParamGolfError(
            "a file of another version",
            where=path,
            expected=f"schema {version}",
            found=_shown(content.get("schema")),
            fix=fix,
        )
    return parse(record, content, "", where=path, of="the file", fix=fix)


def raise_faults(
    faults: list[Fault], where: object, *, of: str = "the parameters", fix: str | None = None
) -> typing.NoReturn:
    """Raise one error that lists every fault, the first MOST_SHOWN in full."""
    count = "a fault" if len(faults) == 1 else f"{len(faults)} faults"
    listing = "".join(f"\n  - `{name}` {text}" for name, text in faults[:MOST_SHOWN])
    if len(faults) > MOST_SHOWN:
        listing += f"\n  - and {len(faults) - MOST_SHOWN} more"
    raise ParamGolfError(f"{count} in {of}{listing}", where=where, fix=fix)


def convert(kind: Any, value: Any, name: str, faults: list[Fault]) -> Any:
    """Convert a value to the annotated type `kind`, or note what is wrong with it.

    `name` is the value's dotted name; it is empty for the root of a file.
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, value, name, faults)
    origin = typing.get_origin(kind)
    if origin is None:
        return _convert_scalar(kind, value, name, faults)
    return GENERIC[origin](typing.get_args(kind), value, name, faults)


Arguments = tuple[Any, ...]  # of a generic type


def _convert_bounded(arguments: Arguments, value: Any, name: str, faults: list[Fault]) -> Any:
    """Convert to `Annotated[kind, bounds]`."""
    kind, bounds = arguments
    converted = convert(kind, value, name, faults)
    if converted is not None and not bounds.admits(converted):
        faults.append((name, f"must {bounds}, found {_shown(value)}"))
    return converted


def _convert_word(words: Arguments, value: Any, name: str, faults: list[Fault]) -> Any:
    """Convert to `Literal[word, ...]`."""
    if type(value) is bool and {"on", "off"} <= {*words}:  # as YAML 1.1 reads the two words
        return "on" if value else "off"
    if any(value == word and type(value) is type(word) for word in words):  # True equals 1
        return value
    return _note(name, f"one of {', '.join(map(str, words))}", value, faults)


def _convert_union(kinds: Arguments, value: Any, name: str, faults: list[Fault]) -> Any:
    """Convert to the first type, unless a value is None or a word and the others admit that."""
    kind, *others = kinds
    if value is None and type(None) in others:
        return None
    if any(value in typing.get_args(other) for other in others):
        return value
    return convert(kind, value, name, faults)


def _convert_tuple(kinds: Arguments, value: Any, name: str, faults: list[Fault]) -> Any:
    """Convert a list to `tuple[kind, ...]`, of any length, or to one kind for each item."""
    if not isinstance(value, list | tuple):
        return _note(name, "a list", value, faults)
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        return _note(name, f"a list of {len(kinds)}", value, faults)
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(convert(kind, item, f"{name}.{i}", faults) for i, (kind, item) in pairs)


def _convert_mapping(arguments: Arguments, value: Any, name: str, faults: list[Fault]) -> Any:
    """Convert to `dict[str, kind]`."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return _note(name, "a mapping", value, faults)
    kind = arguments[1]
    return {key: convert(kind, item, _inside(name, key), faults) for key, item in value.items()}


# by the origin of a generic type
GENERIC: dict[Any, Callable[[Arguments, Any, str, list[Fault]], Any]] = {
    Annotated: _convert_bounded,
    typing.Literal: _convert_word,
    types.UnionType: _convert_union,
    typing.Union: _convert_union,
    tuple: _convert_tuple,
    dict: _convert_mapping,
}


def _convert_scalar(kind: Any, value: Any, name: str, faults: list[Fault]) -> Any:
    if kind is float and type(value) in (int, float):
        # an int may exceed all floats: it is compared before it is converted
        if abs(value) <= sys.float_info.max:
            return float(value)
    elif kind is float and is_exponent(value):
        if math.isfinite(number := float(value)):
            return number
    elif kind is str and isinstance(value, str):
        if _is_unicode(value):
            return value
    elif type(value) is kind:
        return value
    words = {int: "a whole number", bool: "true or false", str: "a text", float: "a number"}
    return _note(name, words[kind], value, faults)


def _is_unicode(text: str) -> bool:
    """Tell whether UTF-8 can hold a text: JSON and YAML can spell half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text  # which no name of a file holds


def is_exponent(value: Any) -> bool:
    """Tell whether `value` is what PyYAML by itself makes of 1e-05: a text."""
    return (
        isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value) is not None
    )


def _convert_dataclass(kind: Any, value: Any, name: str, faults: list[Fault]) -> Any:
    if not isinstance(value, Mapping):
        return _note(name, "a mapping", value, faults)
    hints, optional = _fields(kind)
    before = len(faults)
    for key in value:
        if key not in hints and not issubclass(kind, Foreign):
            near = difflib.get_close_matches(str(key), hints, n=1)
            known = f"known: {', '.join(hints)}"
            advice = f"did you mean `{_inside(name, near[0])}`?" if near else known
            faults.append((_inside(name, key), f"is not a parameter; {advice}"))
    fields = {}
    for key, hint in hints.items():
        if key in value:
            fields[key] = convert(hint, value[key], _inside(name, key), faults)
        elif key not in optional:
            faults.append((_inside(name, key), "is missing"))
    if len(faults) > before:
        return None
    built = kind(**fields)
    if isinstance(built, Judged):
        faults.extend((_inside(name, field), text) for field, text in built.faults())
    return built


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], set[str]]:
    """Return the types of a dataclass's fields, and the names of those that may be missing."""
    none = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    optional = {f.name for f in fields if f.default is not none or f.default_factory is not none}
    return typing.get_type_hints(kind, include_extras=True), optional


def _inside(name: str, key: object) -> str:
    return f"{name}.{str(key)[:60]}" if name else str(key)[:60]


def _note(name: str, expected: str, value: Any, faults: list[Fault]) -> None:
    faults.append((name, f"must be {expected}, found {_shown(value)}"))


def _shown(value: Any) -> str:
    """Return a value as a message shows it: enough to be recognised, however long it is."""
    return reprlib.repr(value)

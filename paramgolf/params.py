"""Strict, typed parameters: a section of params.yaml as a frozen dataclass.

All faults are listed in one error. A section's dataclass lives beside the code that reads it and
has no defaults: recipes/base.yaml holds every key. PyYAML reads the `1e-05` that DVC writes as a
string; float fields accept it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from paramgolf.errors import ParamGolfError

PARAMS_PATH = Path("params.yaml")
Section = TypeVar("Section")


def load_params(section: type[Section], name: str, path: str | Path = PARAMS_PATH) -> Section:
    """Read section `name` of a parameter file as an instance of the dataclass `section`."""
    content = read_yaml(path)
    if name not in content:
        raise ParamGolfError(f"section `{name}` is missing", where=path, fix="paramgolf use NAME")
    return parse(section, content[name], name, where=path)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamGolfError(f"there is no file {path}", fix=_where_to_find(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamGolfError("not a YAML file", where=path, found=error) from None
    if not isinstance(content, dict):
        raise ParamGolfError("not a YAML mapping", where=path, found=type(content).__name__)
    return content


def _where_to_find(path: str | Path) -> str:
    advice = "run in the project's folder"
    is_params = Path(path).name == PARAMS_PATH.name
    return f"{advice}, or write the file with `paramgolf use sample`" if is_params else advice


def parse(section: type[Section], content: Any, name: str, *, where: object = None) -> Section:
    """Build `section` from a mapping; all faults are reported in one ParamGolfError."""
    faults: list[str] = []
    value = convert(section, content, name, faults)
    if faults:
        raise_faults(faults, where)
    assert isinstance(value, section)
    return value


def raise_faults(faults: list[str], where: object) -> typing.NoReturn:
    """Raise one error that lists every fault."""
    count = "a fault" if len(faults) == 1 else f"{len(faults)} faults"
    listing = "".join(f"\n  - {fault}" for fault in faults)
    raise ParamGolfError(f"{count} in the parameters{listing}", where=where)


def convert(kind: Any, value: Any, name: str, faults: list[str]) -> Any:
    """Convert a YAML value to the annotated type `kind`, or note what is wrong with it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, value, name, faults)
    if origin is typing.Literal:
        if type(value) is bool and {"on", "off"} <= {*arguments}:  # as YAML 1.1 reads the two words
            value = "on" if value else "off"
        if any(value == one and type(value) is type(one) for one in arguments):
            return value
        return _fault(name, "one of " + ", ".join(map(str, arguments)), value, faults)
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
            return _fault(name, "a list", value, faults)
        pairs = enumerate(value)
        return tuple(convert(arguments[0], item, f"{name}.{i}", faults) for i, item in pairs)
    return _convert_scalar(kind, value, name, faults)


def _convert_scalar(kind: Any, value: Any, name: str, faults: list[str]) -> Any:
    if kind is float and (type(value) in (int, float) or _is_exponent(value)):
        if math.isfinite(number := float(value)):
            return number
    elif type(value) is kind:
        return value
    words = {int: "a whole number", bool: "true or false", str: "a text", float: "a number"}
    return _fault(name, words[kind], value, faults)


def _is_exponent(value: Any) -> bool:
    """Tell whether `value` is what PyYAML makes of the 1e-05 that DVC writes: a text."""
    return (
        isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value) is not None
    )


def _convert_dataclass(kind: Any, value: Any, name: str, faults: list[str]) -> Any:
    if not isinstance(value, Mapping):
        return _fault(name, "a mapping", value, faults)
    hints = typing.get_type_hints(kind)
    before = len(faults)
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            advice = f"did you mean `{name}.{near[0]}`?" if near else f"known: {', '.join(hints)}"
            faults.append(f"`{name}.{key}` is not a parameter; {advice}")
    fields = {}
    for key, hint in hints.items():
        if key not in value:
            faults.append(f"`{name}.{key}` is missing")
        else:
            fields[key] = convert(hint, value[key], f"{name}.{key}", faults)
    if len(faults) > before:
        return None
    built = kind(**fields)
    if hasattr(built, "faults"):  # what the dataclass says of its own fields together
        faults.extend(f"`{name}.{fault}" for fault in built.faults())
    return built


def _fault(name: str, expected: str, value: Any, faults: list[str]) -> None:
    faults.append(f"`{name}` must be {expected}, found {value!r}")

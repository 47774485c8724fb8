"""The parameter file: a section of params.yaml as a frozen dataclass.

A section's dataclass lives beside the code that reads it and has no defaults: recipes/base.yaml
holds every key.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from paramgolf.errors import ParamGolfError
from paramgolf.files import MAX_INTEGER, decoded, read_text
from paramgolf.schema import parse

PARAMS_PATH = Path("params.yaml")
MAX_DEPTH = 32
# as YAML 1.2 has them, which DVC reads: in YAML 1.1 `on` is true, 010 is 8, 1:30 is 90, and the
# 1e-08 that DVC writes a text
PLAIN = {
    "tag:yaml.org,2002:bool": r"(true|True|TRUE|false|False|FALSE)\Z",
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)\Z",
    "tag:yaml.org,2002:float": r"""(?x)
        ([-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |\.[0-9][0-9_]*([eE][-+]?[0-9]+)?
        |[-+]?\.(inf|Inf|INF)
        |\.(nan|NaN|NAN))\Z""",
}
SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
Section = TypeVar("Section")


def load_params(section: type[Section], name: str, path: str | Path = PARAMS_PATH) -> Section:
    """Read section `name` of a parameter file as an instance of the dataclass `section`."""
    content = read_yaml(path)
    if name not in content:
        raise ParamGolfError(f"section `{name}` is missing", where=path, fix="paramgolf use NAME")
    return parse(section, content[name], name, where=path)


def read_yaml(path: str | Path, *, aliases: bool = False) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; dvc.yaml may have `aliases`, which DVC takes."""
    return parse_mapping(read_text(path, fix=_where_to_find(path)), path, aliases=aliases)


def parse_mapping(text: str | bytes, where: object, *, aliases: bool = False) -> dict[str, Any]:
    """Parse YAML that must hold a mapping; `where` names it in messages, bytes are UTF-8."""
    try:
        content = parse_yaml(
            text if isinstance(text, str) else decoded(text, where), aliases=aliases
        )
    except yaml.YAMLError as error:
        raise ParamGolfError("not YAML", where=where, found=yaml_fault(error)) from None
    if not isinstance(content, dict):
        raise ParamGolfError("not a YAML mapping", where=where, found=type(content).__name__)
    return content


def parse_yaml(text: str, *, aliases: bool = False) -> Any:
    """Parse YAML strictly; YAMLError where it is none, or holds what no parameter file does.

    That is: a key twice, which DVC refuses too and of which PyYAML keeps the last; an alias, by
    which a short file can stand for a huge one, unless `aliases`; a tag; deep nesting; integers
    beyond 64 bits.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_StrictLoader):  # without recursion, unlike what follows
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise _fault("an alias (*name) is not taken here", event)
        if getattr(event, "tag", None) is not None:
            raise _fault("a tag (!name) is not taken here", event)
        if depth > MAX_DEPTH:
            raise _fault("nested too deeply", event)
    return yaml.load(text, _StrictLoader)


def yaml_fault(error: yaml.YAMLError) -> str:
    """Return in one line where YAML is wrong, and how."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def _fault(what: str, place: Any) -> yaml.MarkedYAMLError:
    """Return an error that names the line of `place`, an event or a node."""
    return yaml.MarkedYAMLError(problem=what, problem_mark=place.start_mark)


class _StrictLoader(SafeLoader):  # type: ignore[misc,valid-type]
    """PyYAML's safe loader; it refuses a key that comes twice and what Python cannot hold.

    Truths and numbers are those of `PLAIN`.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, re.compile(PLAIN[tag]) if tag in PLAIN else known) for tag, known in pairs]
        for first, pairs in SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault("a key must be a name", key)
            if key.value in seen:
                raise _fault(f"the key {key.value[:60]!r} comes twice", key)
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put in what `<<` names, each key once: merges of merges could grow without end."""
        super().flatten_mapping(node)
        names = ((str(key.value), (key, value)) for key, value in node.value)
        node.value = list(dict(names).values())

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except ValueError as error:  # the date 2020-13-45, or 5,000 digits
            raise _fault(str(error), node) from None
        if type(value) is int and abs(value) > MAX_INTEGER:
            raise _fault("an integer beyond 64 bits", node)
        return value


def _where_to_find(path: str | Path) -> str:
    advice = "run in the project's folder"
    is_params = Path(path).name == PARAMS_PATH.name
    return f"{advice}, or write the file with `paramgolf use sample`" if is_params else advice

"""The parameter file: a section of params.yaml as a frozen dataclass.

A section's dataclass lives beside the code that reads it and has no defaults: recipes/base.yaml
holds every key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml

from paramgolf.errors import ParamGolfError
from paramgolf.schema import parse

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

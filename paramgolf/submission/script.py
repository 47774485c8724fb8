"""What a train_gpt.py holds: its frozen parameters, its modules, and the packages they import."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import brotli
from packaging.version import Version

from paramgolf.errors import ParamGolfError
from paramgolf.files import parse_object
from paramgolf.imports import PACKAGE


@dataclass(frozen=True, slots=True)
class PackedScript:
    """The contents of a train_gpt.py: `params` by section, `sources` by module."""

    params: Mapping[str, Any]
    sources: Mapping[str, str]


def read_script(path: Path) -> PackedScript:
    """Take a train_gpt.py apart without running it; one that package did not write is an error."""
    try:
        tree = ast.parse(path.read_bytes())
        (text,) = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKED"
        ]
        unpacked = brotli.decompress(str(text).encode("latin-1")).decode()
        _, params, *content = unpacked.split("\0")
        sources = dict(zip(content[0::2], content[1::2], strict=True))
        return PackedScript(parse_object(params, path), sources)
    except (SyntaxError, ValueError, brotli.error) as error:
        fix = "make it again: `dvc repro package`"
        raise ParamGolfError("not a packed script", where=path, found=error, fix=fix) from None


def requirements(script: PackedScript) -> list[str]:
    """Return the packages that a script imports, as pip writes them, in the versions here.

    A build's own mark, such as +cpu of torch, is left out: the index does not know it. So is what
    is not installed here: the script runs without it, as Triton's kernels on a CPU.
    """
    distributions = metadata.packages_distributions()
    names = {name for source in script.sources.values() for name in _imported(source)}
    others = (names - sys.stdlib_module_names - {PACKAGE}) & distributions.keys()
    packages = {distributions[name][0] for name in others}
    return [f"{name}=={Version(metadata.version(name)).public}" for name in sorted(packages)]


def _imported(source: str) -> Iterator[str]:
    """Yield the top-level names of the packages that a source imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def one_code(scripts: Sequence[PackedScript]) -> bool:
    """Tell whether scripts are the same but for the training seed."""
    first, *others = [(_without_seed(script.params), script.sources) for script in scripts]
    return all(other == first for other in others)


def _without_seed(params: Mapping[str, Any]) -> dict[str, Any]:
    return {**params, "train": {**params["train"], "seed": None}}

"""What the scripts of a submission need to run, and whether they are one program."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from packaging.version import Version

from paramgolf.imports import PACKAGE, imported_names
from paramgolf.packing.script import PackedScript


def requirements(script: PackedScript) -> list[str]:
    """Return the packages that a script imports, as pip writes them, in the versions here.

    A build's own mark, such as +cpu of torch, is left out: the index does not know it. So is what
    is not installed here: the script runs without it, as Triton's kernels on a CPU.
    """
    distributions = metadata.packages_distributions()
    imported = (imported_names(ast.parse(source)) for source in script.sources.values())
    names = {name.partition(".")[0] for names in imported for name in names}
    others = (names - sys.stdlib_module_names - {PACKAGE}) & distributions.keys()
    packages = {distributions[name][0] for name in others}
    return [f"{name}=={Version(metadata.version(name)).public}" for name in sorted(packages)]


def one_code(scripts: Sequence[PackedScript]) -> bool:
    """Tell whether scripts are the same but for the training seed."""
    first, *others = [(_without_seed(script.params), script.sources) for script in scripts]
    return all(other == first for other in others)


def _without_seed(params: Mapping[str, Any]) -> dict[str, Any]:
    return {**params, "train": {**params["train"], "seed": None}}

"""Write a recipe, with changes, to params.yaml, and print what differs from the old file.

Nothing is written when a parameter is at fault. Comments come from recipes/base.yaml. Then
`dvc repro` runs the pipeline. `fidelity=published` stands for the parameters by which a recipe does
what its system's published code does (`paramgolf recipes --differences`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paramgolf.arguments import add_recipe
from paramgolf.commented_yaml import dump_sections, key_comments
from paramgolf.errors import ParamGolfError
from paramgolf.files import read_text, write_text
from paramgolf.params import PARAMS_PATH, read_yaml
from paramgolf.recipes import ABSENT, RECIPES, as_text, build, flatten, read_assignment

EXAMPLE = """example:
  paramgolf use sample
  paramgolf use pr1296 train.seed=314 eval_ttt.mode=none
  paramgolf use pr1855 fidelity=published
  paramgolf use sample data.source=files 'data.files=[corpus/*.jsonl.xz]'"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_recipe(parser)


def run(options: argparse.Namespace) -> int:
    """Write params.yaml and print the changes, a line each."""
    assignments = [read_assignment(text) for text in options.assignments]
    content = build(options.name, assignments)
    changes = list(differences(_old_values(PARAMS_PATH), flatten(content)))
    header = " ".join(["Written by `paramgolf use", options.name, *options.assignments]) + "`."
    base = read_text(RECIPES / "base.yaml")
    header = " ".join(header.splitlines())  # a comment ends with its line
    write_text(PARAMS_PATH, dump_sections(content, key_comments(base), header))
    print("\n".join(changes) if changes else f"{PARAMS_PATH}: no parameter changed")
    return 0


def differences(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each dotted key whose value changed."""
    if old is None:
        yield f"{PARAMS_PATH}: written anew, {len(new)} parameters"
        return
    for key in [*new, *(key for key in old if key not in new)]:
        before, after = old.get(key, ABSENT), new.get(key, ABSENT)
        if before != after:
            yield f"{key}: {as_text(before)} -> {as_text(after)}"


def _old_values(path: Path) -> dict[str, Any] | None:
    """Return what the file held, or None where there was none or it was no YAML mapping."""
    try:
        return flatten(read_yaml(path))
    except ParamGolfError:
        return None

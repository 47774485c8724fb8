"""Compare the deps of dvc.yaml's stages with what their scripts import, both ways.

A stage's deps are its data, its script, and every module of the package that the script imports,
directly or not; `package` also depends on the modules that it packs into train_gpt.py. With --write
the deps in dvc.yaml are put right, comments kept; nothing else in the file changes.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from paramgolf.commented_yaml import dumper
from paramgolf.errors import ParamGolfError
from paramgolf.files import write_text
from paramgolf.imports import closure
from paramgolf.packing.code import embedded_files

EXAMPLE = """example:
  paramgolf deps
  paramgolf deps --write"""
DVC_YAML = Path("dvc.yaml")
CODE = ("paramgolf/", "stages/")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--write", action="store_true", help="put the deps in dvc.yaml right")


def run(options: argparse.Namespace) -> int:
    """Print what differs, or write it; code 1 where something differs and is not written."""
    root = Path()
    document = read_pipeline(root)
    lines = differences(document["stages"], root)
    print("\n".join(lines) if lines else f"{DVC_YAML}: every stage's deps are exact")
    if lines and options.write:
        for name, stage in document["stages"].items():
            stage["deps"] = expected_deps(name, stage, root)
        text = io.StringIO()
        yaml = dumper()
        yaml.indent(mapping=2, sequence=4, offset=2)
        yaml.dump(document, text)
        write_text(root / DVC_YAML, text.getvalue())
        return 0
    return 1 if lines else 0


def read_pipeline(root: Path) -> Any:
    """Return dvc.yaml with its comments."""
    try:
        return dumper().load(root / DVC_YAML)
    except FileNotFoundError:
        fix = "run in the project's folder"
        raise ParamGolfError(f"there is no file {DVC_YAML}", fix=fix) from None
    except YAMLError as error:
        raise ParamGolfError("not a YAML file", where=DVC_YAML, found=error) from None


def differences(stages: Mapping[str, Any], root: Path) -> list[str]:
    """Return a line for each dep that is missing or too many in a stage."""
    lines = []
    for name, stage in stages.items():
        listed, needed = set(stage["deps"]), set(expected_deps(name, stage, root))
        lines += [f"{name}: lacks {dep}" for dep in sorted(needed - listed)]
        lines += [f"{name}: has no use for {dep}" for dep in sorted(listed - needed)]
    return lines


def expected_deps(name: str, stage: Mapping[str, Any], root: Path) -> list[str]:
    """Return a stage's data deps as they are, its script, and the modules it imports; sorted."""
    script = script_of(stage)
    if not (root / script).is_file():
        raise ParamGolfError(f"there is no script {script}", where=DVC_YAML)
    code = {script, *closure(script, root)}
    if name == "package":
        code.update(embedded_files(root=root))
    data = {dep for dep in stage["deps"] if not dep.startswith(CODE)}
    return sorted(data | {path.as_posix() for path in code})


def script_of(stage: Mapping[str, Any]) -> Path:
    """Return the script that a stage runs, the last of its commands."""
    return Path(stage["cmd"][-1].split()[-1])

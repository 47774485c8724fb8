"""What torch does not promise is used in one file, by the versions that it was run with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from paramgolf.errors import ParamGolfError
from paramgolf.model.torch_internals import OLDEST, TOO_NEW, require_known_torch

ROOT = Path(__file__).parents[2]
# a name with an underscore inside torch or one of its modules, or one of a tensor's
PRIVATE = re.compile(r"\btorch(\.\w+)*\._(?!_)|\._(is_view|base)\b")


def test_only_one_file_uses_private_names():
    users = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "paramgolf").rglob("*.py")
        if PRIVATE.search(path.read_text(encoding="utf-8"))
    }
    assert users == {"paramgolf/model/torch_internals.py"}


@pytest.mark.parametrize("version", ["2.11.0", "2.11.0+cu130", "2.13.0+cpu", "2.14.1"])
def test_versions_within_the_bounds_are_taken(version):
    require_known_torch(version)


@pytest.mark.parametrize("version", ["2.10.1", "2.15.0", "3.0.0.dev20270101"])
def test_another_version_is_refused_with_what_to_install(version):
    with pytest.raises(ParamGolfError, match=r"expected: torch>=2\.11,<2\.15") as caught:
        require_known_torch(version)
    assert f"found: torch {version}" in str(caught.value)


def test_pyproject_has_the_same_bounds():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = "torch>={}.{},<{}.{}".format(*OLDEST, *TOO_NEW)
    assert bounds in dependencies

"""What a wheel holds beside the modules: the templates of the pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from setuptools import Distribution

ROOT = Path(__file__).parents[1]
TEMPLATES = sorted(
    path.relative_to(ROOT).as_posix() for path in ROOT.glob("paramgolf/*/templates/*")
)


def test_a_wheel_has_every_template(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files([str(ROOT / "pyproject.toml")])
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    built = {Path(path).relative_to(build.build_lib).as_posix() for path in build.get_outputs()}
    assert TEMPLATES
    assert set(TEMPLATES) <= built

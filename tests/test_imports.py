"""imports.py: the closure of imports, on a package made for the test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from paramgolf.imports import closure, imported_modules

FILES = {
    "paramgolf/__init__.py": "",
    "paramgolf/a.py": "from paramgolf.b import thing\nimport json\n",
    "paramgolf/b.py": "def late():\n    from paramgolf.sub import c\n",
    "paramgolf/sub/__init__.py": '"""Text."""\n',
    "paramgolf/sub/c.py": "import paramgolf.a\n",
    "paramgolf/unused.py": "",
    "stages/run.py": "from paramgolf.a import x\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_closure_follows_late_imports_and_circles_once(root):
    found = closure(Path("stages/run.py"), root)
    assert [path.as_posix() for path in found] == [
        "paramgolf/a.py",
        "paramgolf/b.py",
        "paramgolf/sub/c.py",
    ]


def test_a_script_without_imports_has_an_empty_closure(root):
    assert closure(Path("paramgolf/unused.py"), root) == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import paramgolf.a as b, os", {"paramgolf.a"}),
        ("from paramgolf import a", {"paramgolf", "paramgolf.a"}),
        ("from paramgolf.sub.c import f, g", {f"paramgolf.sub.c{x}" for x in ("", ".f", ".g")}),
        ("from . import a\nimport paramgolfer", set()),
    ],
)
def test_imports_are_found_in_every_form(source, names):
    assert imported_modules(ast.parse(source)) == names


def test_no_init_file_imports_anything():
    """An import there would make every stage depend on what it names."""
    package = Path(__file__).parents[1] / "paramgolf"
    for path in package.rglob("__init__.py"):
        assert imported_modules(ast.parse(path.read_text())) == set(), path

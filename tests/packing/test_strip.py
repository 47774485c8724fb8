"""What strip leaves of a module: the same behaviour, without words for people."""

import ast

import pytest

from paramgolf.packing.code import ROOT, embedded_files
from paramgolf.packing.strip import drop_unused_imports, shorten_locals, strip, unparse

SOURCE = '''"""Module."""
from __future__ import annotations
import dataclasses
import functools
import typing

TABLE: dict[str, int] = {}

class Empty(Exception):
    """Only a docstring."""

class Pair(typing.NamedTuple):
    """Doc."""
    first: int
    second: int

@dataclasses.dataclass(kw_only=True)
class Kept:
    """Doc."""
    field: int = 3  # annotation of a field stays
    """Doc of the field."""

    def method(self, x: int, *rest: str, key: float = 1.0, **more: object) -> str:
        """Doc."""
        local: int = x
        assert local == x, "invariant"
        text = """a
    b"""
        return f"{local}{text}{key}"

@functools.cache
def kernel(x: int) -> int:
    return x

def nothing() -> None:
    """Only a docstring."""

def fail():
    advice = "run dvc repro"
    raise ValueError("no", found=1, fix=advice)
'''


def stripped(source):
    tree = ast.parse(source)
    strip(tree)
    return unparse(tree)


def test_behaviour_stays_and_words_go():
    text = stripped(SOURCE)
    scope: dict = {}
    exec(compile(text, "stripped", "exec"), scope)
    assert scope["Kept"].__annotations__ == {"field": "int"}
    assert scope["Pair"](1, 2).second == 2
    assert scope["Pair"].__annotations__ != {"first": "int", "second": "int"}
    assert scope["kernel"].__annotations__ == {"x": "int", "return": "int"}
    assert scope["Kept"]().method(1, key=2.0) == "1a\n    b2.0"
    assert scope["Kept"].method.__annotations__ == {}
    assert scope["nothing"]() is None
    assert issubclass(scope["Empty"], Exception)
    for word in ("Doc", "docstring", "stays", "invariant", "dvc repro"):
        assert word not in text
    assert "found=1" in text
    assert "TABLE = {}" in text


def test_the_import_of_annotations_goes_where_none_is_left():
    future = "from __future__ import annotations\n"
    pair = "import typing\nclass Pair(typing.NamedTuple):\n    first: int\n"
    for source, stays in (
        ("def plain(x: int) -> int:\n    return x\n", False),
        (pair, False),
        ("@wrap\ndef kernel(x: int):\n    return x\n", True),
        ("@wrap\ndef kernel(x) -> int:\n    return x\n", True),
        ("@dataclass(kw_only=True)\nclass Kept:\n    field: int\n", True),
    ):
        assert ("__future__" in stripped(future + source)) == stays
    scope: dict = {}
    exec(stripped(future + pair), scope)
    assert scope["Pair"](1).first == 1


def test_imports_that_nothing_speaks_of_are_dropped():
    source = "from __future__ import annotations\nfrom a import b, c as d, e\nimport f\nprint(e, d)"
    kept = "from __future__ import annotations\nfrom a import c as d, e\nprint(e, d)"
    for given, expected in (
        (source, kept),
        ("import a.b, c.d\nc.d.e()", "import c.d\nc.d.e()"),
        (
            "from a import b\nfrom c import D\nclass E:\n    f: D = 1",
            "from c import D\n\nclass E:\n f: D = 1",
        ),
    ):
        tree = ast.parse(given)
        drop_unused_imports(tree)
        assert unparse(tree) == expected


LOCALS = """
import functools
total = 5
def plain(value, *, other=1):
    result = [item * a for item in value for a in (other,)]
    total = sum(item for item in result)
    for index, (first, *rest) in enumerate([[1, 2, 3]]):
        total += index + first + sum(rest) + len(result)
    try:
        raise ValueError(7)
    except ValueError as error:
        total += error.args[0]
    match (total, 3):
        case (number, 3):
            total = number
    if (size := len(value)) > 1:
        total += size
    return f"{total:{size}}"
def outer(value):
    kept = value + 1
    def inner():
        return kept + total
    return inner()
@functools.cache
def decorated(value):
    doubled = 2 * value
    return doubled
"""


def test_local_names_are_shortened_where_nothing_else_reads_them():
    tree = ast.parse(LOCALS)
    shorten_locals(tree)
    text = unparse(tree)
    before, after = {}, {}
    exec(LOCALS, before)
    exec(text, after)
    for name, argument in (("plain", (1, 2)), ("outer", 3), ("decorated", 4)):
        assert before[name](argument) == after[name](argument)
    assert before["plain"]([4, 5], other=2) == after["plain"]([4, 5], other=2)
    for gone in ("result", "item", "index", "rest", "size", "doubled"):
        assert gone not in text
    for kept in ("value", "other=1", "kept", "total = 5"):
        assert kept in text


@pytest.mark.parametrize("path", embedded_files(), ids=str)
def test_stripped_modules_have_the_same_names(path):
    def names(source):
        return {
            node.id if isinstance(node, ast.Name) else node.name
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
        }

    source = (ROOT / path).read_text()
    left = names(stripped(source))
    assert left <= names(source)
    assert names(source) - left <= {"fix"}  # advice, which errors do not show any more

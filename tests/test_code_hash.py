"""A hash of code without its comments: what changes it, and what does not."""

from __future__ import annotations

import pytest

from paramgolf.code_hash import code_hash, code_of

SOURCE = '''"""A module."""

from math import pi


def area(radius: float, *, scale: float = 1.0) -> str:
    """Return an area."""
    # why: circles
    name = f"{radius!r:>{10}} {f'{scale}'}" f"""
of {radius}
"""
    return name + str(pi * radius**2 * scale)
'''


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("    # why: circles\n", ""),
        ("circles", "and of spheres"),
        ('"""Return an area."""', '"""Return an area as text.\n\n    In words.\n    """'),
        ('    """Return an area."""\n', ""),
        ('"""A module."""\n', ""),
        ("radius: float, *,", "radius: float,  # meters\n    *,"),
        ("\n    ", "\n  "),
        ("import pi\n", "import pi  # 3.14\n\n\n"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(before, after):
    assert before in SOURCE
    changed = SOURCE.replace(before, after)
    assert code_of(changed) == code_of(SOURCE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1.0", "2.0"),
        ("radius!r", "radius!s"),
        ("\nof {radius}", "\nOf {radius}"),
        ("    return name", "return name"),
        ("    return name", "    if name:\n        return name"),
        ("f'{scale}'", "'{scale}'"),
        ("import pi\n", "import pi\nf'{pi}'\n"),
    ],
)
def test_whatever_else_changes_counts(before, after):
    assert before in SOURCE
    assert code_of(SOURCE.replace(before, after)) != code_of(SOURCE)


def test_blocks_are_told_apart_by_their_depth():
    inside, outside = "if a:\n    b()\n    c()\n", "if a:\n    b()\nc()\n"
    assert code_of(inside) != code_of(outside)
    texts = "if a:\n    'lone'\n    b()\nc()\n", "if a:\n    b()\n    'lone'\nc()\n"
    assert {code_of(text) for text in texts} == {code_of(outside)}


def test_names_of_modules_count_and_their_order_does_not():
    assert code_hash({"a": "1", "b": "2"}) == code_hash({"b": "2", "a": "1"})
    assert code_hash({"a": "1", "b": "2"}) != code_hash({"a": "2", "b": "1"})


def test_the_hash_is_the_same_on_every_python():
    """Computed by 3.11, 3.12 and 3.13; f-strings are one token before 3.12, many since."""
    expected = "a5cee06427d2c465a35aa26dd35ecd3ecd071223bcd1809b9d80ed8562d72584"
    assert code_hash({"module": SOURCE}) == expected

"""Dataclasses as schemas: values take their types; every fault is named, in one message."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.errors import ParamGolfError
from paramgolf.schema import FileName, Foreign, Natural, Range, Sha256, parse, read_record


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    count: int
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    rate: float
    flag: bool
    kind: Literal["a", "b"]
    limit: int | None
    inner: Inner


GOOD: dict[str, Any] = {
    "name": "x",
    "rate": 1,
    "flag": False,
    "kind": "b",
    "limit": None,
    "inner": {"count": 2, "rates": [1, 2.5, "1e-05"]},
}


def test_values_take_the_type_of_their_field():
    value = parse(Outer, GOOD, "outer")
    inner = Inner(count=2, rates=(1.0, 2.5, 1e-05))
    assert value == Outer(name="x", rate=1.0, flag=False, kind="b", limit=None, inner=inner)
    assert type(value.rate) is float


@pytest.mark.parametrize("text", ["1e-05", "1E5", "-2e3", "+1.5e+2", "1.e-3"])
def test_an_exponent_without_a_point_is_a_number(text):
    assert parse(Outer, GOOD | {"rate": text}, "outer").rate == float(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": "fast"}, "`outer.rate` must be a number, found 'fast'"),
        ({"rate": float("nan")}, "`outer.rate` must be a number, found nan"),
        ({"rate": True}, "`outer.rate` must be a number, found True"),
        ({"flag": "yes"}, "`outer.flag` must be true or false, found 'yes'"),
        ({"name": 3}, "`outer.name` must be a text, found 3"),
        ({"kind": "c"}, "`outer.kind` must be one of a, b, found 'c'"),
        ({"limit": 2.0}, "`outer.limit` must be a whole number, found 2.0"),
        ({"inner": 5}, "`outer.inner` must be a mapping, found 5"),
        ({"inner": {"count": 2}}, "`outer.inner.rates` is missing"),
        ({"inner": {"count": True, "rates": []}}, "`outer.inner.count` must be a whole number"),
        ({"inner": {"count": 1, "rates": 3}}, "`outer.inner.rates` must be a list, found 3"),
        ({"inner": {"count": 1, "rates": [0, "x"]}}, "`outer.inner.rates.1` must be a number"),
        ({"nmae": 1}, "`outer.nmae` is not a parameter; did you mean `outer.name`?"),
        ({"zzz": 1}, "`outer.zzz` is not a parameter; known: name, rate"),
    ],
)
def test_a_bad_value_is_named(change, message):
    with pytest.raises(ParamGolfError) as caught:
        parse(Outer, GOOD | change, "outer")
    assert message in str(caught.value)


@settings(deadline=None, max_examples=40)
@given(st.sets(st.sampled_from(sorted(GOOD)), min_size=1))
def test_every_missing_key_is_listed(missing):
    content = {key: value for key, value in GOOD.items() if key not in missing}
    with pytest.raises(ParamGolfError) as caught:
        parse(Outer, content, "outer")
    assert all(f"`outer.{key}` is missing" in str(caught.value) for key in missing)
    assert str(caught.value).count("\n  - ") == len(missing)


@pytest.mark.parametrize(
    ("bounds", "words", "inside", "outside"),
    [
        (Range(2, 8), "lie in 2..8", [2, 8], [1, 9]),
        (Range(1), "be at least 1", [1, 10**30], [0]),
        (Range(above=0), "be above 0", [1e-300], [0, -1]),
        (Range(0, below=1), "be at least 0 and below 1", [0, 0.999], [1, -1e-9]),
        (Range(above=1, most=4), "be above 1 and at most 4", [4], [1, 4.1]),
    ],
)
def test_a_range_admits_what_its_words_say(bounds, words, inside, outside):
    assert str(bounds) == words
    assert all(map(bounds.admits, inside))
    assert not any(map(bounds.admits, outside))


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    schema: Natural
    name: FileName
    counts: dict[str, Natural]
    sha256: Sha256 | None = None


LISTED = {"schema": 1, "name": "a_000.bin", "counts": {"x": 1}}


def test_a_field_with_a_default_may_be_missing(tmp_path):
    path = tmp_path / "listed.json"
    path.write_text(json.dumps(LISTED))
    found = read_record(Listed, path, version=1, fix="make it again")
    assert found == Listed(schema=1, name="a_000.bin", counts={"x": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LISTED | {"schema": 2}, "another version(.|\n)*expected: schema 1\n  found: 2"),
        (LISTED | {"schema": None}, "another version"),
        ([], "not a JSON object"),
        (LISTED | {"name": "../a.bin"}, "`name` must be the name of a file in the folder"),
        (LISTED | {"name": "/etc/passwd"}, "`name` must be the name of a file"),
        (LISTED | {"name": ".."}, "`name` must be the name of a file"),
        (LISTED | {"name": "a\0b"}, "`name` must be a text"),
        (LISTED | {"name": "\ud800"}, "`name` must be a text"),
        (LISTED | {"sha256": "abc"}, "`sha256` must be a SHA-256 in hexadecimal"),
        (LISTED | {"counts": {"x": -1}}, r"`counts\.x` must be at least 0"),
        (LISTED | {"counts": [1]}, "`counts` must be a mapping"),
        (LISTED | {"extra": 1}, "`extra` is not a parameter"),
        (LISTED | {str(i): 1 for i in range(1000)}, "1000 faults in the file(.|\n)*and 950 more"),
    ],
)
def test_a_record_at_fault_is_named_with_its_file(content, message, tmp_path):
    path = tmp_path / "listed.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ParamGolfError, match=message) as caught:
        read_record(Listed, path, version=1, fix="make it again")
    assert str(path) in str(caught.value)
    assert "what to do: make it again" in str(caught.value)


def test_what_others_write_may_hold_more():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Theirs(Foreign):
        count: int

    globals()["Theirs"] = Theirs
    assert parse(Theirs, {"count": 1, "else": [1]}, "") == Theirs(count=1)
    with pytest.raises(ParamGolfError, match="`count` is missing"):
        parse(Theirs, {"else": 1}, "")

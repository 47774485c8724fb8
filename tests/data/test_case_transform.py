"""CaseOps on text: the written rule by examples, and the exact inverse on arbitrary Unicode."""

from __future__ import annotations

import itertools

import pytest
import token_case
from hypothesis import given, settings

from paramgolf.data.case_transform import ALL_CAPS, CAP_NEXT, ESCAPE, MARKS, TITLE, decode, encode

T, A, C, E = TITLE, ALL_CAPS, CAP_NEXT, ESCAPE
TEXT = token_case.mixed_text(MARKS + "aAbBzZ \n0'ÉéſKİß\0")


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("the cat", "the cat"),
        ("The Cat I", f"{T}the {T}cat {T}i"),
        ("USA's NASA1b", f"{A}usa's {A}nasa1b"),
        ("iPhone", f"i{C}phone"),
        ("McDonald", f"{T}mc{C}donald"),
        ("ABc", f"{T}a{C}bc"),
        ("aBC", f"a{C}b{C}c"),
        ("éAb ÉCOLE", f"é{T}ab É{A}cole"),
        (f"{T}a{E}", f"{E}{T}a{E}{E}"),
    ],
)
def test_the_rule_by_examples(text: str, encoded: str) -> None:
    assert encode(text) == encoded
    assert decode(encoded) == text


@given(TEXT)
@settings(max_examples=1000, deadline=None)
def test_decode_is_the_exact_inverse(text: str) -> None:
    encoded = encode(text)
    assert decode(encoded) == text
    assert not any("A" <= character <= "Z" for character in encoded)


def test_decode_is_the_exact_inverse_of_all_short_texts() -> None:
    for letters in itertools.product("aBC 1" + MARKS, repeat=4):
        text = "".join(letters)
        assert decode(encode(text)) == text


def test_every_character_comes_back_alone() -> None:
    for code in itertools.chain(range(0xD800), range(0xE000, 0x110000)):
        assert decode(encode(chr(code))) == chr(code)


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_the_bytes_of_the_text_are_those_of_what_is_no_mark(text: str) -> None:
    total, literal = 0, False
    for character in encode(text):
        counts = literal or character not in MARKS
        total += len(character.encode()) if counts else 0
        literal = character == ESCAPE and not literal
    assert total == len(text.encode())


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_any_text_can_be_decoded(text: str) -> None:
    # what a model writes need not be a transform of anything
    assert encode(decode(encode(text))) == encode(text)
    assert isinstance(decode(text), str)


@pytest.mark.parametrize(
    ("text", "decoded"), [(T, ""), (E, ""), (f"{T} a", " a"), (f"{A}{T}a", "A"), (f"{C}1", "1")]
)
def test_a_mark_that_nothing_follows_stands_for_nothing(text: str, decoded: str) -> None:
    assert decode(text) == decoded

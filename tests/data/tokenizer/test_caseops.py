"""CaseOps: the rule on text and its inverse; marks as tokens, and their bytes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import token_case
from hypothesis import given, settings
from hypothesis import strategies as st
from token_case import bytes_without_marks

from paramgolf.data.tokenizer.byte_counts import SPACE, byte_table
from paramgolf.data.tokenizer.caseops import (
    ALL_CAPS,
    CAP_NEXT,
    ESCAPE,
    MARKS,
    TITLE,
    count_marks,
    decode_case,
    encode_case,
    escaped,
    mark_ids,
)
from paramgolf.data.tokenizer.training import train_tokenizer
from paramgolf.errors import ParamGolfError

T, A, C, E = TITLE, ALL_CAPS, CAP_NEXT, ESCAPE
TEXT = token_case.mixed_text(MARKS + "aAbBzZ \n0'ÉéſKİß\0")
MODEL = token_case.processor(token_case.trained_on_case())
TABLE, MARK_IDS = byte_table(MODEL), mark_ids(MODEL)
TOKEN_TEXT = token_case.mixed_text([*MARKS, *"aTHhe oOfF  \0\1\2\3\né語", " The"])
# BOS, pad, marks, bytes and a space
IDS = st.lists(st.sampled_from([0, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11, 50, 50, 60]))


@pytest.mark.parametrize(
    ("text", "encoded", "before_space"),
    [
        ("the cat", "the cat", False),
        ("The Cat I", f"{T}the {T}cat {T}i", False),
        ("USA's NASA1b", f"{A}usa's {A}nasa1b", False),
        ("iPhone", f"i{C}phone", False),
        ("McDonald", f"{T}mc{C}donald", False),
        ("ABc", f"{T}a{C}bc", False),
        ("aBC", f"a{C}b{C}c", False),
        ("éAb ÉCOLE", f"é{T}ab É{A}cole", False),
        (f"{T}a{E}", f"{E}{T}a{E}{E}", False),
        ("of The  Cat", f"of{T} the {T} cat", True),
        ("The\nCat", f"{T}the\n{T}cat", True),
        ("a NASA-I", f"a{A} nasa-{T}i", True),
        (f"a {T} {E} B", f"a {E}{T} {E}{E}{T} b", True),
    ],
)
def test_the_rule_by_examples(text: str, encoded: str, before_space: bool) -> None:
    assert encode_case(text, before_space=before_space) == encoded
    assert decode_case(encoded) == text


@pytest.mark.parametrize("before_space", [False, True])
@given(text=TEXT)
@settings(max_examples=1000, deadline=None)
def test_decode_is_the_exact_inverse(text: str, before_space: bool) -> None:
    encoded = encode_case(text, before_space=before_space)
    assert decode_case(encoded) == text
    assert not any("A" <= character <= "Z" for character in encoded)


@pytest.mark.parametrize("before_space", [False, True])
def test_decode_is_the_exact_inverse_of_all_short_texts(before_space: bool) -> None:
    for letters in itertools.product("aBC 1" + MARKS, repeat=4):
        text = "".join(letters)
        assert decode_case(encode_case(text, before_space=before_space)) == text


def test_every_character_comes_back_alone() -> None:
    for code in itertools.chain(range(0xD800), range(0xE000, 0x110000)):
        assert decode_case(encode_case(chr(code))) == chr(code)


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_the_bytes_of_the_text_are_those_of_what_is_no_mark(text: str) -> None:
    assert bytes_without_marks([encode_case(text)]) == [len(text.encode())]


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_any_text_can_be_decoded(text: str) -> None:
    # what a model writes need not be a transform of anything
    assert encode_case(decode_case(encode_case(text))) == encode_case(text)
    assert isinstance(decode_case(text), str)


@pytest.mark.parametrize(
    ("text", "decoded"), [(T, ""), (E, ""), (f"{T}  a", "  a"), (f"{A}{T}a", "A"), (f"{C}1", "1")]
)
def test_a_mark_that_nothing_follows_stands_for_nothing(text: str, decoded: str) -> None:
    assert decode_case(text) == decoded


def tokens_of(text: str) -> np.ndarray:
    ids = MODEL.encode(encode_case(text))
    return np.array([1, *ids], dtype=np.uint16)


def surface(token: int) -> str:
    """What a token stands for in the encoded text; of a byte, any character of one."""
    if MODEL.is_control(token):
        return ""
    return "x" if MODEL.is_byte(token) else MODEL.id_to_piece(token).replace(SPACE, " ")


def test_the_marks_are_tokens_4_to_7() -> None:
    assert [MODEL.id_to_piece(i) for i in range(4)] == ["<pad>", "<s>", "</s>", "<unk>"]
    assert MARK_IDS.tolist() == [4, 5, 6, 7]
    assert [MODEL.id_to_piece(int(i)) for i in MARK_IDS] == [*MARKS]
    assert [MODEL.id_to_piece(i) for i in (8, 9, 10)] == ["<0x00>", "<0x01>", "<0x02>"]


@given(TOKEN_TEXT)
@settings(max_examples=200, deadline=None)
def test_counts_are_those_of_the_surfaces_and_sum_to_the_text(text: str) -> None:
    ids = tokens_of(text)
    counts = count_marks(ids, TABLE.counts(ids), MARK_IDS)
    assert counts.dtype == np.uint16
    assert counts.tolist() == bytes_without_marks(map(surface, ids.tolist()))
    if SPACE not in text:
        assert counts.sum() == len(text.encode())


@given(IDS)
@settings(max_examples=200, deadline=None)
def test_escaped_is_that_of_a_plain_loop(ids: list[int]) -> None:
    expected, literal = [], False
    for i in ids:
        expected.append(literal)
        literal = i == 7 and not literal
    assert escaped(np.array(ids, dtype=np.uint16), 7).tolist() == expected


def test_a_model_without_the_marks_is_refused() -> None:
    model = token_case.processor(token_case.trained())
    with pytest.raises(ParamGolfError, match=r"does not have the case marks(.|\n)*none of them"):
        mark_ids(model)


def test_a_model_trained_on_capitals_is_refused() -> None:
    model = token_case.processor(train_tokenizer(["The Cat The Cat THE"] * 99, 280, symbols=MARKS))
    with pytest.raises(ParamGolfError, match=r"not trained on text in the case transform"):
        mark_ids(model)


def test_a_mark_inside_a_longer_piece_is_refused() -> None:
    symbols = ",".join(MARKS) + ",\ue001x"
    model = token_case.processor(token_case.other(user_defined_symbols=symbols))
    with pytest.raises(ParamGolfError, match=r"as four pieces\n  found: .*'\\ue001x'"):
        mark_ids(model)


def test_marks_are_found_elsewhere_than_at_4_to_7() -> None:
    symbols = "x," + ",".join(MARKS)
    model = token_case.processor(token_case.other(user_defined_symbols=symbols))
    assert mark_ids(model).tolist() == [5, 6, 7, 8]

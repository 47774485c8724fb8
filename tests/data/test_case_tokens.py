"""Case marks in token streams: bytes against a machine over surfaces, fusion and its inverse."""

from __future__ import annotations

import numpy as np
import pytest
import token_case
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paramgolf.data import case_transform
from paramgolf.data.byte_counts import SPACE, byte_table
from paramgolf.data.case_tokens import Fusion, count_marks, escaped, fusion, mark_ids
from paramgolf.data.case_transform import ESCAPE, MARKS
from paramgolf.errors import ParamGolfError

MODEL = token_case.processor(token_case.trained_on_case())
TABLE, MARK_IDS = byte_table(MODEL), mark_ids(MODEL)
TEXT = token_case.mixed_text([*MARKS, *"aTHhe oOfF  \0\1\2\3\né語", " The"])
# BOS, pad, marks, aliases, a byte and a space
IDS = st.lists(st.sampled_from([0, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11, 50, 50, 60]))


def tokens_of(text: str) -> np.ndarray:
    ids = MODEL.encode(case_transform.encode(text))
    return np.array([1, *ids], dtype=np.uint16)


def surface_counts(ids: list[int]) -> list[int]:
    """Bytes of each piece by the published rule: a machine over the characters of surfaces."""
    counts, literal = [], False
    for i in ids:
        total = 0
        if MODEL.is_byte(i):
            total, literal = 1, False
        elif not MODEL.is_control(i):
            for character in MODEL.id_to_piece(i).replace(SPACE, " "):
                if literal or character not in MARKS:
                    total += len(character.encode())
                literal = character == ESCAPE and not literal
        counts.append(total)
    return counts


def test_the_marks_are_tokens_4_to_7() -> None:
    assert [MODEL.id_to_piece(i) for i in range(4)] == ["<pad>", "<s>", "</s>", "<unk>"]
    assert MARK_IDS.tolist() == [4, 5, 6, 7]
    assert [MODEL.id_to_piece(int(i)) for i in MARK_IDS] == [*MARKS]
    assert [MODEL.id_to_piece(i) for i in (8, 9, 10)] == ["<0x00>", "<0x01>", "<0x02>"]


@given(TEXT)
@settings(max_examples=200, deadline=None)
def test_counts_are_those_of_the_surfaces_and_sum_to_the_text(text: str) -> None:
    ids = tokens_of(text)
    counts = count_marks(ids, TABLE.counts(ids), MARK_IDS)
    assert counts.dtype == np.uint16
    assert counts.tolist() == surface_counts(ids.tolist())
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


def fuse_by_loop(ids: list[int], space: int) -> list[int]:
    fused: list[int] = []
    for i in ids:
        if fused and fused[-1] == space and i in (4, 5, 6):
            fused[-1] = i + 4
        elif i in (8, 9, 10):
            fused += [7, i]
        else:
            fused.append(i)
    return fused


@given(IDS)
@settings(max_examples=300, deadline=None)
def test_fusing_is_that_of_a_plain_loop_and_keeps_the_bytes(values: list[int]) -> None:
    ids = np.array(values, dtype=np.uint16)
    counts = np.arange(len(ids), dtype=np.uint16)
    fused, sums = Fusion(50).fuse(ids, counts)
    assert fused.tolist() == fuse_by_loop(values, 50)
    assert fused.dtype == np.uint16
    assert sums is not None
    assert len(sums) == len(fused)
    assert sums.sum() == counts.sum()


@given(TEXT)
@example("\ue004 The")  # a fused pair behind a mark that is text
@example("\ue004\0 \ue004\1\ue001 A")
@settings(max_examples=200, deadline=None)
def test_splitting_is_the_exact_inverse_on_texts(text: str) -> None:
    ids = tokens_of(text)
    counts = count_marks(ids, TABLE.counts(ids), MARK_IDS)
    fused, sums = fusion(MODEL).fuse(ids, counts)
    assert fusion(MODEL).split(fused).tolist() == ids.tolist()
    assert sums is not None
    assert sums.sum() == counts.sum()


def test_a_fused_pair_has_the_byte_of_its_space() -> None:
    ids = tokens_of("the The \1")
    fused, sums = fusion(MODEL).fuse(ids, count_marks(ids, TABLE.counts(ids), MARK_IDS))
    assert sums is not None
    assert sums[fused == 8].tolist() == [1]
    assert fused[-2:].tolist() == [7, 9]  # the literal U+0001 and its escape
    assert sums[-2:].tolist() == [0, 1]
    assert fusion(MODEL).aliases == [
        [8, fusion(MODEL).space, 4],
        [9, fusion(MODEL).space, 5],
        [10, fusion(MODEL).space, 6],
    ]


def test_a_model_without_the_marks_is_refused() -> None:
    model = token_case.processor(token_case.trained())
    with pytest.raises(ParamGolfError, match=r"does not have the case marks(.|\n)*none of them"):
        mark_ids(model)


def test_a_mark_inside_a_longer_piece_is_refused() -> None:
    symbols = ",".join(MARKS) + ",\ue001x"
    model = token_case.processor(token_case.other(user_defined_symbols=symbols))
    with pytest.raises(ParamGolfError, match=r"as four pieces\n  found: .*'\\ue001x'"):
        mark_ids(model)


def test_marks_elsewhere_cannot_be_fused() -> None:
    symbols = "x," + ",".join(MARKS)
    model = token_case.processor(token_case.other(user_defined_symbols=symbols))
    assert mark_ids(model).tolist() == [5, 6, 7, 8]
    with pytest.raises(ParamGolfError, match=r"cannot be fused(.|\n)*found: .*\[5, 6, 7, 8\]"):
        fusion(model)

"""Bytes of tokens: the table against what the tokenizer itself decodes."""

from __future__ import annotations

import numpy as np
import pytest
import token_case
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.data.tokenizer.byte_counts import as_counts, at_most, byte_table
from paramgolf.errors import ParamGolfError

MODELS = {
    "ours": {},
    "published": token_case.PUBLISHED,
    "dummy prefix": {"add_dummy_prefix": True},
    "published with dummy prefix": token_case.PUBLISHED | {"add_dummy_prefix": True},
    "whitespace pieces": {"allow_whitespace_only_pieces": True},
    "no byte fallback": {"byte_fallback": False, "vocab_size": 80},
    "no byte fallback, dummy prefix": {
        **{"byte_fallback": False, "vocab_size": 80},
        **{"add_dummy_prefix": True, "normalization_rule_name": "nmt_nfkc"},
    },
}
TEXT = token_case.mixed_text(" \n\tthe of and12é語")


@pytest.mark.parametrize("name", MODELS)
@given(text=TEXT)
@settings(max_examples=60, deadline=None)
def test_counts_are_the_bytes_of_the_decoded_text(name: str, text: str) -> None:
    model = token_case.processor(token_case.other(**MODELS[name]))
    ids = np.array([model.bos_id(), *model.encode(text)], dtype=np.uint16)
    counts = byte_table(model).counts(ids)
    known = [int(i) for i in ids[1:] if i != model.unk_id()]
    assert counts.dtype == np.uint16
    assert counts[0] == 0
    assert counts.sum() == len(model.decode(known).encode())


def test_our_tokenizers_give_every_byte_back() -> None:
    model = token_case.processor(token_case.trained())
    table = byte_table(model)
    for text in ("  two  spaces ", "\ttab\r\n\n", "nul\0", "\U0010ffff\ufeff", " </s><0x41>", "语"):
        ids = np.array([model.bos_id(), *model.encode(text)], dtype=np.uint16)
        assert model.decode(ids[1:].tolist()) == text
        assert table.counts(ids).sum() == len(text.encode())


def test_a_space_inside_a_piece_is_one_byte() -> None:
    model = token_case.processor(token_case.other(user_defined_symbols="a\u2581b,\u2581\u2581"))
    table = byte_table(model)
    assert table.counts(np.array([model.piece_to_id("a\u2581b")])).tolist() == [3]
    assert table.counts(np.array([model.piece_to_id("\u2581\u2581")])).tolist() == [2]


def test_a_token_of_more_bytes_than_a_shard_can_say_is_refused() -> None:
    assert as_counts(np.array([0, 2**16 - 1])).tolist() == [0, 2**16 - 1]
    with pytest.raises(ParamGolfError, match=r"at most 65,535\n  found: 65,536"):
        as_counts(np.array([1, 2**16]))


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_at_most_takes_the_excess_off_the_end(counts: list[int], limit: int) -> None:
    before = np.array(counts, dtype=np.uint16)
    after = at_most(before, limit)
    assert after.dtype == np.uint16
    assert after.sum() == min(limit, before.sum())
    assert (after <= before).all()
    changed = np.flatnonzero(after != before)
    assert len(changed) == 0 or (after[changed[0] + 1 :] == 0).all()

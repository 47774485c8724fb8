"""Pieces across the bounds of words: what is merged, and that counts and masks hold for them."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import token_case
from hypothesis import example, given, settings

from paramgolf.data.audit import audit
from paramgolf.data.caseops import encode_case
from paramgolf.data.retokenize import retokenize
from paramgolf.data.special_tokens import ALL_CAPS, CAP_NEXT, ESCAPE, LAST_MARKS, MARKS, TITLE
from paramgolf.data.superwords import with_superwords
from paramgolf.data.token_mask import build_mask
from paramgolf.data.tokenizer import TokenizerFile, open_tokenizer
from paramgolf.errors import ParamGolfError

TEXTS = [encode_case(text, before_space=True) for text in token_case.make_cased_texts(0, 200)]
TEXT = token_case.mixed_text([*MARKS, *"aAbT  \0é語12", " The", " of the", "in the", " and", "'s"])
COUNT = 20


@functools.cache
def words(pieces: int = 350) -> bytes:
    return token_case.train_tokenizer(TEXTS, pieces, symbols=MARKS)


@functools.cache
def superwords() -> bytes:
    return with_superwords(words(), TEXTS, COUNT)


def pieces(model: bytes) -> list[str]:
    opened = token_case.processor(model)
    return [opened.id_to_piece(i) for i in range(opened.vocab_size())]


def test_the_last_merges_alone_give_way_to_pairs_of_pieces() -> None:
    before, after = pieces(words()), pieces(superwords())
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    merges = [i for i, piece in enumerate(before) if i > 263 and len(piece) > 1]
    assert {*changed} <= {*merges[-COUNT:]}  # a merge may come again, where it is frequent enough
    made = [after[i] for i in merges[-COUNT:]]
    kept = {*after} - {*made}
    for n, text in enumerate(made):
        parts = {*kept, *made[:n]}
        assert any({text[:cut], text[cut:]} <= parts for cut in range(1, len(text))), text
    assert any("\u2581" in text[1:] for text in made)


def test_the_most_frequent_pairs_come_first() -> None:
    model = with_superwords(token_case.trained(), ["of the"] * 3 + ["it was in"] * 90, 4)
    assert {"it\u2581was", "it\u2581was\u2581in"} < {*pieces(model)}
    encoded = token_case.processor(model).encode("it was of the", out_type=str)
    assert encoded == ["it\u2581was", "\u2581of", "\u2581the"]


def test_a_piece_has_no_mark_but_one_at_its_end_and_no_digit() -> None:
    added = {*pieces(superwords())} - {*pieces(words())}
    assert not any({*MARKS, *"0123456789"} & {*text[:-1]} for text in added)
    assert not any(text[-1] in {CAP_NEXT, ESCAPE, *"0123456789"} for text in added)
    assert any(text[-1] in LAST_MARKS for text in added)


@given(TEXT)
@settings(max_examples=150, deadline=None)
def test_every_text_comes_back_in_no_more_tokens(text: str) -> None:
    before, after = map(token_case.processor, (words(), superwords()))
    encoded = encode_case(text, before_space=True)
    assert after.decode(after.encode(encoded)) == before.decode(before.encode(encoded))


def test_of_a_run_of_one_token_the_first_two_are_merged() -> None:
    model = with_superwords(token_case.trained(), ["ooooo"] * 30, 1)
    assert token_case.processor(model).encode("ooooo", out_type=str) == ["oo", "oo", "o"]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("superwords")
    val, train = token_case.make_cased_texts(1, 12), token_case.make_cased_texts(2, 60)
    raw = token_case.write_raw(folder / "raw", val, train)
    config = token_case.config(vocab_size=340, transform="caseops_before_space", superwords=COUNT)
    retokenize(config, 1, raw, folder / "tokens")
    return folder


def test_bytes_are_proven_and_no_pair_is_forbidden(tokens) -> None:
    metrics = audit(token_case.audit_config(), tokens / "raw", tokens / "tokens")
    assert metrics["lossless"]
    assert metrics["bytes_val_raw"] == metrics["bytes_val_counted"]
    assert metrics["pairs_forbidden"] == 0


@given(TEXT)
@example(f"the {TITLE}the{ESCAPE}{ALL_CAPS} The.")
@settings(max_examples=150, deadline=None)
def test_each_texts_bytes_are_those_of_its_tokens(tokens, text: str) -> None:
    tokenizer, _ = opened(str(tokens / "tokens/tokenizer.model"))
    (ids, counts), *_ = tokenizer.encode([text], count_bytes=True)
    assert counts is not None
    assert counts.sum() == len(text.replace("\u2581", " ").encode())
    assert tokenizer.decode(ids) == text.replace("\u2581", " ").encode()


@given(first=TEXT, second=TEXT)
@settings(max_examples=120, deadline=None)
def test_no_text_has_a_pair_that_the_mask_forbids(tokens, first: str, second: str) -> None:
    tokenizer, mask = opened(str(tokens / "tokens/tokenizer.model"))
    encoded = tokenizer.encode([first, second], count_bytes=False)
    text = np.concatenate([part for part, _ in encoded])
    assert not len(mask.forbidden(text))


@functools.cache
def opened(path: str):
    transform = "caseops_before_space"
    return open_tokenizer(TokenizerFile(path, transform)), build_mask(path, transform)


@pytest.mark.parametrize(
    ("count", "texts", "message"),
    [(400, TEXTS, "too few pieces"), (20, ["of the"], "too few pairs")],
)
def test_more_than_there_are_is_one_message(count: int, texts: list[str], message: str) -> None:
    with pytest.raises(ParamGolfError, match=message) as caught:
        with_superwords(words(), texts, count)
    assert "tokenizer.superwords" in str(caught.value)

"""Which tokens can follow which: held against SentencePiece, pair by pair and on any text."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import token_case
from hypothesis import example, given, settings

from paramgolf.data.special_tokens import ALL_CAPS, BOS, CAP_NEXT, ESCAPE, MARKS, SPACE, TITLE
from paramgolf.data.tokenizer.text_tokenizer import TextTokenizer, TokenizerFile, open_tokenizer
from paramgolf.data.tokenizer.token_mask import TokenMask, build_mask
from paramgolf.errors import ParamGolfError

KINDS = ["none", "caseops", "caseops_before_space"]
TEXT = token_case.mixed_text(
    [*MARKS, *"aAbTHhe oOfF  \0\1\2\3\né語", " The", "the of", "aa", "NASA"]
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {
        "none": token_case.trained(),
        "caseops": token_case.trained_on_case(),
        "caseops_before_space": token_case.trained_on_case(),
        # BOS is token 3, characters that are no pieces are the unknown token
        "foreign": token_case.other(bos_id=3, unk_id=1, byte_fallback=False, vocab_size=90),
    }
    for name, content in made.items():
        (folder / f"{name}.model").write_bytes(content)
    return {name: folder / f"{name}.model" for name in made}


@functools.cache
def opened(path: Path, transform: str) -> tuple[TextTokenizer, TokenMask]:
    return open_tokenizer(TokenizerFile(str(path), transform)), build_mask(path, transform)


def encode(tokenizer: TextTokenizer, *texts: str) -> np.ndarray:
    """The stream of some documents, as the shards hold it."""
    return np.concatenate([tokens for tokens, _ in tokenizer.encode([*texts], count_bytes=False)])


def test_pieces_are_allowed_side_by_side_exactly_if_they_are_encoded_so(models) -> None:
    # long and short pieces of few letters, so that many pairs merge across their seam, and some do
    # so only while a neighbor is still in parts
    texts = ["".join(np.random.default_rng(i).choice([*"aaabbc "], 400)) for i in range(20)]
    model = token_case.processor(token_case.train_tokenizer(texts, 420))
    path = models["none"].with_name("dense.model")
    path.write_bytes(model.serialized_model_proto())
    allowed = build_mask(path, "none").allowed
    pieces = {i: model.id_to_piece(i) for i in range(260, model.vocab_size())}
    wrong, merged = [], 0
    for left, text in pieces.items():
        pairs = [(text + other).replace(SPACE, " ") for other in pieces.values()]
        for right, found in zip(pieces, model.encode(pairs), strict=True):
            merged += found != [left, right]
            if allowed[left, right] != (found == [left, right]):
                wrong.append((text, pieces[right]))
    assert not wrong
    assert merged > 1000


@pytest.mark.parametrize("kind", KINDS)
@given(first=TEXT, second=TEXT)
@example(first=f"{TITLE}A{ESCAPE}", second=f"{ESCAPE}{CAP_NEXT}{ALL_CAPS}bC")
@example(first="\0 \1 A\2", second=" \0")
@settings(max_examples=120, deadline=None)
def test_no_text_has_a_forbidden_pair(models, kind, first, second) -> None:
    tokenizer, mask = opened(models[kind], kind)
    text = encode(tokenizer, first, second)
    assert not len(mask.forbidden(text))
    # nor has a part of it, of which nothing before is known
    assert not any(len(mask.forbidden(text[cut:])) for cut in range(len(text)))


@given(first=TEXT, second=TEXT)
@settings(max_examples=80, deadline=None)
def test_another_bos_and_unknown_tokens_are_at_their_place(models, first, second) -> None:
    tokenizer, mask = opened(models["foreign"], "none")
    assert not len(mask.forbidden(encode(tokenizer, first, second)))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_another_segmentation_are_forbidden(models, kind) -> None:
    tokenizer, mask = opened(models[kind], kind)
    whole = encode(tokenizer, "of the of")
    parts = np.concatenate([encode(tokenizer, c)[1:] for c in ["o", "f", " ", "t", "h", "e"]])
    assert len(parts) > len(whole) - 1
    assert len(mask.forbidden(np.r_[BOS, parts]))


def test_the_case_transform_has_a_grammar(models) -> None:
    model = token_case.processor(token_case.trained_on_case())
    _, mask = opened(models["caseops"], "caseops")
    title, caps, cap_next, escape = map(model.piece_to_id, MARKS)
    a, space, digit = (model.piece_to_id(piece) for piece in ("a", SPACE, "1"))
    can = mask.allowed
    assert can[title, a]
    assert can[a, cap_next]
    assert can[space, title]
    assert can[escape, title]
    for before, after in [
        (title, space), (title, title), (title, BOS), (caps, digit), (cap_next, escape),
        (a, title), (a, caps), (space, cap_next), (BOS, cap_next), (escape, a),
    ]:  # fmt: skip
        assert not can[before, after]
    # behind an ESCAPE a mark is text, and text follows it
    assert not len(mask.forbidden(np.array([BOS, escape, title, space])))
    assert len(mask.forbidden(np.array([BOS, space, title, space])))


@pytest.mark.parametrize("content", [None, b"no model"])
def test_a_tokenizer_that_cannot_be_read_is_one_message(tmp_path, content) -> None:
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ParamGolfError, match=r"no SentencePiece model|there is no file"):
        build_mask(path, "none")


@pytest.mark.parametrize("kind", KINDS)
def test_every_state_allows_something_and_the_unknown_one_all(models, kind) -> None:
    _, mask = opened(models[kind], kind)
    assert mask.allowed.any(1).all()
    assert mask.allowed[-1].all()


def test_words_hold_the_table_bit_by_bit(models) -> None:
    _, mask = opened(models["none"], "none")
    tokens = np.arange(mask.allowed.shape[1])
    bits = mask.words[:, tokens // 32] >> (tokens % 32) & 1
    assert np.array_equal(bits.astype(bool), mask.allowed)

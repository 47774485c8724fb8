"""Hugging Face tokenizers: offsets to bytes, lossless kinds, and what lossy ones must report."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import token_case
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from paramgolf.data.tokenizer.byte_counts import SPACE
from paramgolf.data.tokenizer.text_tokenizer import TextTokenizer, TokenizerFile, open_tokenizer
from paramgolf.data.tokenizer.vocabulary_json import span_bytes
from paramgolf.errors import ParamGolfError

VAL, TRAIN = token_case.make_texts(1, 6), token_case.make_texts(2, 20)
BYTES = sum(len(text.encode()) for text in VAL)
BYTE_NAMES = [f"<0x{byte:02X}>" for byte in range(256)]
Tokenizer = tokenizers.Tokenizer


def byte_level(special: tuple[str, ...] = ("<pad>", "x", "<s>")) -> Tokenizer:
    """BPE over bytes, as GPT-2's; post-processing that adds tokens and trims offsets."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[*special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(token_case.make_texts(0, 50), trainer)
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=50)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """BPE of characters with byte fallback, as Llama's."""
    letters = [*"▁abcdefghijklmnopqrstuvwxyz0123456789.\n", "▁t", "▁th"]
    names = ["<unk>", "<s>", "</s>", *BYTE_NAMES, *letters]
    vocabulary = {name: index for index, name in enumerate(names)}
    merges = [("▁", "t"), ("▁t", "h")]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def lowercase() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def nfkc() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFKC()
    return tokenizer


def word_pieces() -> Tokenizer:
    """Words and their pieces, as BERT's: spaces are lost, rare characters unknown."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", "[CLS]"], show_progress=False
    )
    tokenizer.train_from_iterator(["the of and in to a is that for 12 . x"] * 9, trainer)
    return tokenizer


def rewriting() -> Tokenizer:
    """Every character becomes an `a`: a text that any model predicts."""
    tokenizer = Tokenizer(models.BPE({"<s>": 0, "a": 1}, []))
    tokenizer.normalizer = normalizers.Replace(tokenizers.Regex(r"[\s\S]"), "a")
    tokenizer.add_special_tokens(["<s>"])
    unused = [tokenizers.AddedToken(f"unused {i}", normalized=False) for i in range(300)]
    tokenizer.add_tokens(unused)
    return tokenizer


def words() -> Tokenizer:
    """Whole words; all others are one unknown token."""
    names = ["<unk>", *token_case.WORDS]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def opened(tokenizer: Tokenizer, folder: Path) -> TextTokenizer:
    tokenizer.save(str(folder / "given.json"))
    return open_tokenizer(TokenizerFile(str(folder / "given.json"), "none"))


def make(tokenizer: Tokenizer, folder: Path, val: list[str] = VAL) -> token_case.Case:
    """Write data/raw and data/tokens with a tokenizer."""
    size = opened(tokenizer, folder).size
    return token_case.tokenized(folder, folder / "given.json", size, val, TRAIN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json")


TEXT = token_case.mixed_text([*" \nthe of½ﬁÉé語İ1", "<s>", "</s>", "<pad>", "<unk>", "the"])


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_lossless_kinds_give_every_byte_back(kind: Callable[[], Tokenizer], folder: Path) -> None:
    tokenizer = opened(kind(), folder)

    @given(TEXT)
    @settings(max_examples=150, deadline=None)
    def check(text: str) -> None:
        text = text.replace(SPACE, "")  # Llama's kind reads it as a space
        ((tokens, counts),) = tokenizer.encode([text], count_bytes=True)
        assert tokens[0] == 1
        assert 1 not in tokens[1:]  # not even where the text spells BOS, or another special token
        assert counts is not None
        assert counts[0] == 0
        assert counts.sum() == len(text.encode())
        assert tokenizer.decode(tokens) == text.encode()

    check()


@pytest.mark.parametrize("kind", [lowercase, nfkc, word_pieces, words])
def test_lossy_kinds_count_neither_more_than_the_text_nor_than_they_hold(
    kind: Callable[[], Tokenizer], folder: Path
) -> None:
    tokenizer = opened(kind(), folder)

    @given(TEXT)
    @settings(max_examples=150, deadline=None)
    def check(text: str) -> None:
        ((tokens, counts),) = tokenizer.encode([text], count_bytes=True)
        assert counts is not None
        assert counts.sum() <= min(len(text.encode()), len(tokenizer.decode(tokens)))

    check()


@given(TEXT.filter(bool), st.data())
@settings(max_examples=200, deadline=None)
def test_spans_of_whole_characters_are_their_bytes(text: str, data: st.DataObject) -> None:
    cuts = data.draw(st.sets(st.integers(1, len(text)), max_size=5)) | {len(text)}
    bounds = [0, *sorted(cuts)]
    spans = np.array([*itertools.pairwise(bounds)])
    expected = [len(text[start:stop].encode()) for start, stop in spans]
    assert span_bytes(text, spans).tolist() == expected


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        ("語a", [(0, 1)] * 3 + [(1, 2)], [1, 1, 1, 1]),  # byte tokens
        ("a語", [(0, 2), (1, 2)], [3, 1]),  # a space and a first byte in one token
        ("½", [(0, 1)] * 3, [0, 1, 1]),  # a normaliser made three of one
        ("a  b ", [(0, 1), (3, 4)], [1, 4]),  # gaps go to the next token, the rest to the last
        ("ab", [(0, 1), (0, 0), (1, 2)], [0, 1, 1]),  # a token of nothing
        ("ab", [], []),
    ],
)
def test_shared_and_skipped_characters(
    text: str, spans: list[tuple[int, int]], expected: list[int]
) -> None:
    counts = span_bytes(text, np.array(spans).reshape(-1, 2))
    assert counts.tolist() == expected


def test_an_unknown_token_counts_nothing(folder: Path) -> None:
    tokenizer = opened(words(), folder)
    ((tokens, counts),) = tokenizer.encode(["the qqq of"], count_bytes=True)
    assert counts is not None
    assert counts.tolist() == [0, 3, 0, 3]
    assert tokenizer.decode(tokens) == b"the of"


def test_byte_fallback_tokens_count_one_byte_each(folder: Path) -> None:
    tokenizer = opened(byte_fallback(), folder)
    ((tokens, counts),) = tokenizer.encode(["the 語é"], count_bytes=True)
    assert counts is not None
    assert counts.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert len(tokens) == 10


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_the_audit_proves_the_bytes(kind: Callable[[], Tokenizer], tmp_path: Path) -> None:
    case = make(kind(), tmp_path)
    metrics = case.audit()
    assert metrics["lossless"]
    assert metrics["bytes_val_raw"] == metrics["bytes_val_counted"] == BYTES
    assert metrics["bytes_scored_rule"].startswith("offsets of the tokens")
    assert case.manifest()["tokenizer"] == "tokenizer.json"


@pytest.mark.parametrize(
    ("kind", "texts", "counted"),
    [
        (lowercase, ["The CAT", "İ"], 7 + 2),  # i and a dot above: 3 bytes for 2
        (nfkc, ["½ x", "ﬁ", "ｆｕｌｌ"], 4 + 2 + 4),  # 1/2: 7 bytes for 4; fi, full: fewer
        (word_pieces, ["the  of", "IN to"], 6 + 5),
        (words, ["the qqq of", "in"], 6 + 2),  # decoded to "the of"
    ],
)
def test_a_lossy_tokenizer_is_measured_and_never_flatters(
    kind: Callable[[], Tokenizer], texts: list[str], counted: int, tmp_path: Path
) -> None:
    metrics = make(kind(), tmp_path, texts).audit()
    raw_bytes = sum(len(text.encode()) for text in texts)
    assert not metrics["lossless"]
    assert metrics["bytes_val_raw"] == raw_bytes
    assert metrics["bytes_val_counted"] == counted
    assert metrics["bytes_lost"] == raw_bytes - counted


def test_bos_of_the_tokenizer_changes_places_with_token_1(tmp_path: Path) -> None:
    case = make(byte_level(), tmp_path, ["the"])
    manifest = case.manifest()
    assert (manifest["bos"], manifest["tokenizer_bos"], manifest["vocab_size"]) == (1, 2, 320)
    assert case.split("val")[0] == 1


def test_a_tokenizer_without_bos_gets_one(tmp_path: Path) -> None:
    case = make(byte_level(()), tmp_path, ['"!'])
    manifest = case.manifest()
    assert (manifest["bos"], manifest["tokenizer_bos"], manifest["vocab_size"]) == (1, 320, 321)
    # `!` is 0 and `"` is 1, which has become 320
    assert case.split("val").tolist() == [1, 320, 0]


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_byte_tokens_counted_as_replacement_characters_are_named(
    kind: Callable[[], Tokenizer], tmp_path: Path
) -> None:
    # base_bytes = 3 for 27 byte tokens gave 1.0819 for a true 1.1266 (pg#1143, pg#1289)
    case, plain = make(kind(), tmp_path), kind()
    counts, own = case.split("val_bytes"), {1: case.manifest()["tokenizer_bos"]}
    for place, token in enumerate(case.split("val").tolist()):
        shown = plain.decode([own.get(token, token)], skip_special_tokens=False)
        if "\ufffd" in shown and token != 1:
            name = plain.id_to_token(own.get(token, token))
            counts[place] += len(shown.encode()) - (1 if name in BYTE_NAMES else len(name))
    case.replace("val_bytes", counts)
    case.refuse(r"no whole character are counted as U\+FFFD \(pg#1143\)\n  where: val:1")


@pytest.mark.parametrize("change", [-1, 1])
def test_one_byte_too_many_or_too_few_is_found(change: int, tmp_path: Path) -> None:
    case = make(byte_level(), tmp_path)
    counts = case.split("val_bytes").astype(np.int64)
    counts[5] += change
    case.replace("val_bytes", counts)
    case.refuse(r"differ from its text\n  where: val:1")


@pytest.mark.parametrize("tokenizer", [rewriting, words])
def test_a_tokenizer_that_rewrites_the_text_is_told_apart(
    tmp_path: Path, tokenizer: Callable[[], Tokenizer]
) -> None:
    metrics = make(tokenizer(), tmp_path).audit()
    assert (metrics["lossless"], metrics["normalization"]) == (False, "other")


def test_a_token_of_more_bytes_than_a_shard_can_say_is_refused(tmp_path: Path) -> None:
    """uint16 would wrap: 70,000 spaces before the first word count with it."""
    with pytest.raises(ParamGolfError, match="a token stands for more bytes of text than a shard"):
        make(words(), tmp_path, [" " * 70_000 + "the of " * 15_000, *VAL])

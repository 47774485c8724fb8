"""Vocabulary files: the format, longest match against a plain loop, the proof of their bytes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import token_case
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.data.tokenizer.text_tokenizer import TokenizerFile, open_tokenizer
from paramgolf.data.tokenizer.vocabulary_text import TextVocabulary, Trie, read_tokens
from paramgolf.errors import ParamGolfError

VAL, TRAIN = token_case.make_texts(1, 8), token_case.make_texts(2, 20)
BYTES = sum(len(text.encode()) for text in VAL)
SINGLE = [bytes([byte]) for byte in range(256)]
WHOLE = [*SINGLE, b"the", b" the", b" o", b"of ", b"\n\n", "語".encode(), b"\xf0\x9f", b"\\x"]


def escape(token: bytes) -> bytes:
    plain = token.decode("ascii", "replace").isprintable() and token.isascii()
    if plain:
        return token.replace(b"\\", b"\\\\")
    return b"".join(b"\\x%02x" % byte for byte in token)


def write(folder: Path, tokens: list[bytes]) -> Path:
    path = folder / "given.txt"
    path.write_bytes(b"".join(escape(token) + b"\n" for token in tokens))
    return path


def make(folder: Path, tokens: list[bytes], val: list[str] = VAL) -> token_case.Case:
    """Write data/raw and data/tokens with a vocabulary file of `tokens`."""
    path = write(folder, tokens)
    return token_case.tokenized(folder, path, TextVocabulary(path).size, val, TRAIN)


def test_escapes_and_order_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes("a\n\\n\n\\\\n\n\\xff\\x0A\n  \n語\n\\t\\r\n".encode())
    expected = [b"a", b"\n", b"\\n", b"\xff\n", b"  ", "語".encode(), b"\t\r"]
    assert read_tokens(path) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\n\nb\n", r"a token is empty(.|\n)*line 2"),
        (b"a\nb\na\n", r"a token comes twice(.|\n)*line 3\n  found: 'a'"),
        (b"\\x61\na\n", r"a token comes twice(.|\n)*line 2"),
        (b"a\n\\q\n", r"an unknown escape(.|\n)*line 2(.|\n)*write a backslash"),
        (b"\\x1\n", "an unknown escape"),
        (b"a\\\n", "an unknown escape"),
        (b"", "a token is empty"),
    ],
)
def test_what_is_no_vocabulary_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(ParamGolfError) as caught:
        read_tokens(tmp_path / "v.txt")
    assert re.search(expected, str(caught.value)), caught.value


@given(
    st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=9, unique=True),
    st.lists(st.integers(0, 8), max_size=12),
    st.binary(max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_the_match_is_that_of_a_plain_loop(
    tokens: list[bytes], parts: list[int], rest: bytes
) -> None:
    text = b"".join(tokens[part % len(tokens)] for part in parts) + rest
    expected, place = [], 0
    while place < len(text):
        fitting = [token for token in tokens if text.startswith(token, place)]
        longest = max(fitting, key=len, default=b"")
        expected.append(tokens.index(longest) if longest else 99)
        place += len(longest) or 1
    assert Trie(tokens).greedy(text, 99).tolist() == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabulary")


@given(token_case.mixed_text(["the", " the", "of ", "語", "\U0001f600", "\n", "\1"]))
@settings(max_examples=200, deadline=None)
def test_a_vocabulary_with_every_byte_is_lossless(folder: Path, text: str) -> None:
    tokenizer = open_tokenizer(TokenizerFile(str(write(folder, WHOLE)), "none"))
    ((tokens, counts),) = tokenizer.encode([text], count_bytes=True)
    assert tokens.dtype == np.uint16
    assert tokens[0] == 1
    assert 1 not in tokens[1:]
    assert counts is not None
    assert counts[0] == 0
    assert counts.sum() == len(text.encode())
    assert tokenizer.decode(tokens) == text.encode()


def test_bos_is_token_1_and_changes_places(tmp_path: Path) -> None:
    case = make(tmp_path, WHOLE, ["\x01\x00the"])
    manifest = case.manifest()
    assert manifest["bos"] == 1
    assert manifest["tokenizer_bos"] == len(WHOLE)
    assert manifest["tokenizer"] == "tokenizer.txt"
    assert manifest["vocab_size"] == len(WHOLE) + 1
    assert case.split("val").tolist() == [1, len(WHOLE), 0, WHOLE.index(b"the")]


def test_the_audit_proves_the_bytes(tmp_path: Path) -> None:
    metrics = make(tmp_path, WHOLE).audit()
    assert metrics["lossless"]
    assert metrics["bytes_val_raw"] == metrics["bytes_val_counted"] == BYTES


def test_unknown_bytes_count_nothing_and_are_reported(tmp_path: Path) -> None:
    ascii_only = [byte for byte in SINGLE if byte.isascii()]
    case = make(tmp_path, [*ascii_only, b"the"])
    assert case.manifest()["vocab_size"] == 128 + 1 + 2
    metrics = case.audit()
    kept = sum(len(text.encode("ascii", "ignore")) for text in VAL)
    assert not metrics["lossless"]
    assert metrics["bytes_val_counted"] == kept < BYTES
    assert metrics["bytes_val_raw"] == BYTES
    assert metrics["bytes_lost"] == BYTES - kept


def test_bytes_counted_as_replacement_characters_are_named(tmp_path: Path) -> None:
    # 27 byte tokens of a vocabulary counted 3 each: +4.13 % bytes, 1.1266 shown as 1.0819
    case = make(tmp_path, WHOLE)
    shown = [len(token.decode(errors="replace").encode()) for token in WHOLE] + [0]
    shown[1], shown[len(WHOLE)] = shown[len(WHOLE)], shown[1]  # BOS and token 1 change places
    case.replace("val_bytes", np.array(shown)[case.split("val")])
    case.refuse(r"no whole character are counted as U\+FFFD \(pg#1143\)\n  where: val:1")

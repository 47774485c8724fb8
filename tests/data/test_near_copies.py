"""Near copies of validation text: the share of a document's shingles that training holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import token_case
from shard_files import PublishedShards
from token_case import Case

from paramgolf.data import near_copies
from paramgolf.data.near_copies import SEPARATOR, WINDOW, Shingles, TokenLetters, letters
from paramgolf.data.special_tokens import BOS
from paramgolf.data.tokenizer.text_tokenizer import TokenizerFile, open_tokenizer
from paramgolf.errors import ParamGolfError


def joined(documents: list[bytes]) -> np.ndarray:
    return np.frombuffer(SEPARATOR.join([b"", *documents, b""]), np.uint8)


def windows(text: bytes) -> list[bytes]:
    return [text[i : i + WINDOW] for i in range(len(text) - WINDOW + 1)]


def documents(seed: int, count: int, pieces: list[bytes]) -> list[bytes]:
    """Of pieces in any number, so that documents share some of their text."""
    rng = np.random.default_rng(seed)
    return [b"".join(rng.choice(pieces, rng.integers(0, 9))) for _ in range(count)]


def test_shares_are_those_of_brute_force(monkeypatch):
    """Documents of all lengths, none and fewer than a shingle among them, in several parts."""
    monkeypatch.setattr(near_copies, "BLOCK", 64)
    monkeypatch.setattr(near_copies, "AT_ONCE", 200)
    rng = np.random.default_rng(0)
    pieces = [bytes(rng.integers(97, 123, size, np.uint8)) for size in (1, 7, 30, 45, 60, 90)]
    val, train = documents(1, 60, pieces), documents(2, 30, pieces)
    found = Shingles([joined(val[:20]), joined(val[20:])], 1)
    for part in (train[:10], train[10:]):
        found.meet(joined(part))
    # a document of fewer letters is that of training which has the same
    held = set().union(*(windows(text) or [text] for text in train))
    own = [windows(text) or ([text] if text else []) for text in val]
    expected = [np.mean([one in held for one in ones]) if ones else np.nan for ones in own]
    np.testing.assert_array_equal(found.shares(), expected)
    assert {0.0, 1.0} < {*expected}
    assert np.isnan(expected).any()


def test_a_sample_gives_shares_without_bias():
    rng = np.random.default_rng(0)
    val = [bytes(rng.integers(97, 123, 2000, np.uint8)) for _ in range(50)]
    found = Shingles([joined(val)], 8)
    found.meet(joined([text[:1200] for text in val]))
    shares = found.shares()
    assert abs(shares.mean() - 1151 / 1951) < 0.02
    assert shares.std() < 0.06


def test_of_too_small_a_sample_nothing_is_known():
    found = Shingles([joined([b"short", b""])], 2**20)
    found.meet(joined([b"short"]))
    assert np.isnan(found.shares()).all()


def test_letters_leave_out_what_stands_between():
    assert letters("A b\r\n\u00c9-7_z\u00a0.".encode()) == "ab\u00c97z\u00a0".encode()


def rewrite(text: str, kind: str) -> str:
    forms = {
        "blanks": "   ".join(text.split(" ")),
        "case": text.upper(),
        "CRLF": text.replace(" ", "\r\n"),
        "cut": text[40:-40],
        "prefix": "Read on: " + text,
        "joined": "before it. " * 30 + text + " and after" * 30,
        "punctuation": text.replace(" ", ", "),
    }
    return forms[kind]


KINDS = ["blanks", "case", "CRLF", "cut", "prefix", "joined", "punctuation"]
VAL, TRAIN = token_case.make_texts(1, 12), token_case.make_texts(2, 40)
LONG = " ".join(token_case.make_texts(3, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_near_copy_is_refused(tmp_path: Path, kind: str) -> None:
    val = [*VAL, LONG, "?!"]  # the last has no letters, and so no share
    raw = token_case.write_raw(tmp_path / "raw", val, [*TRAIN, rewrite(LONG, kind)])
    case = Case(raw, token_case.write_tokens(raw, tmp_path / "tokens", token_case.trained()))
    with pytest.raises(ParamGolfError, match="near copies of validation documents") as caught:
        case.audit(allowed_near_copies=0.0)
    assert "where: val:13 (validation): training holds" in str(caught.value)
    assert "found: 1 of 14 documents, 7.14%" in str(caught.value)
    metrics = case.audit(allowed_near_copies=0.08)
    assert (metrics["near_copies"], metrics["train_val_overlap"]) == (1, 0)
    assert 0.5 < metrics["val_shingles_in_train"]["most"] <= 1


@pytest.mark.parametrize("transform", ["none", "caseops"])
def test_a_near_copy_in_published_shards_is_found(tmp_path: Path, transform: str) -> None:
    """Case and blanks give other tokens, whose letters are the same."""
    caseops = transform == "caseops"
    model = token_case.trained_on_case() if caseops else token_case.trained()
    text = LONG.encode("ascii", "ignore").decode()
    raw = token_case.write_raw(tmp_path / "own", [*VAL, text], [*TRAIN, text.title()])
    tokens = token_case.write_tokens(raw, tmp_path / "tokens", model, transform=transform)
    shards = PublishedShards(tmp_path / "raw", b"")
    for split in ("val", "train", "val_bytes"):
        shards.add(split, [np.empty(0, np.uint16)])
    with pytest.raises(ParamGolfError, match=r"where: token \d+ \(validation\): .* 100% of its"):
        Case(tmp_path / "raw", tokens).audit(allowed_near_copies=0.0)


def test_letters_of_tokens_are_those_of_their_text(tmp_path: Path) -> None:
    """A byte token that is no whole character has letters of its own."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(token_case.trained())
    tokenizer = open_tokenizer(TokenizerFile(str(path), "none"))
    own = [tokenizer.decode(np.array([BOS, i], np.uint16)) for i in range(tokenizer.size)]
    table = TokenLetters(own, BOS)
    text = "The  cat,\n\tof 12 dogs: it was THAT."
    (ids, _), (other, _), (third, _) = tokenizer.encode(
        [text, "\u2603" * 3, "\u2604" * 3], count_bytes=False
    )
    assert bytes(table.of(ids)) == SEPARATOR + letters(text.encode()) + SEPARATOR
    assert not np.array_equal(table.of(other), table.of(third))

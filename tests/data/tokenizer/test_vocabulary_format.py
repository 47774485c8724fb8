"""Tokenizers of formats that are not read: each is named, whatever its file is called."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import token_case

from paramgolf.data.tokenizer.text_tokenizer import TokenizerFile, open_tokenizer
from paramgolf.errors import ParamGolfError

TOKENS = ["the", " of", "\n", "\u00e9", "and"]
TIKTOKEN = "".join(f"{base64.b64encode(t.encode()).decode()} {i}\n" for i, t in enumerate(TOKENS))
RWKV = "".join(f"{i} {t!r} {len(t.encode())}\n" for i, t in enumerate(TOKENS, 1)) + "6 b'\\xff' 1\n"
BERT = "\n".join(["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##ing"]) + "\n"
TEKKEN = json.dumps(
    {
        "config": {"pattern": "\\s+", "num_vocab_tokens": 1, "version": "v3"},
        "vocab": [{"rank": 0, "token_bytes": "AA==", "token_str": "\0"}],
        "special_tokens": [],
    }
)
GPT2 = {"the": 0, "\u0120of": 1, '"': 2}
OTHERS = {
    "cl100k_base.tiktoken": (TIKTOKEN, "a tiktoken file of ranks"),
    "ranks.model": (TIKTOKEN.replace("\n", "\r\n"), "a tiktoken file of ranks"),
    "tekken.json": (TEKKEN, "a tekken file"),
    "rwkv_vocab_v20230424.txt": (RWKV, "an RWKV vocabulary"),
    "vocab.txt": (BERT, "a BERT vocabulary (WordPiece)"),
    "bert.model": (BERT.replace("\n", "\r\n"), "a BERT vocabulary (WordPiece)"),
    "vocab.json": (json.dumps(GPT2, indent=1), "a table of tokens and ids"),
    "merges.txt": ("#version: 0.2\n\u0120 t\nh e\n", "merges, half of a GPT-2 tokenizer"),
    "sp.vocab": ("<unk>\t0\n<s>\t0\n\u2581the\t-3.1\n", "a SentencePiece vocabulary"),
    "model.gguf": ("GGUF\3\0\0\0", "a GGUF model"),
    "tokenizer.pkl": ("\x80\x04\x95", "a pickle"),
}


def message_of(path: Path) -> str:
    with pytest.raises(ParamGolfError) as caught:
        open_tokenizer(TokenizerFile(str(path), "none"))
    return str(caught.value)


@pytest.mark.parametrize("name", OTHERS)
def test_another_format_is_named_with_those_that_are_read(tmp_path: Path, name: str) -> None:
    content, found = OTHERS[name]
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1" if name.endswith(".pkl") else "utf-8"))
    message = message_of(path)
    assert f"found: {found}" in message
    assert "expected: a SentencePiece model, a Hugging Face tokenizers file" in message


@pytest.mark.parametrize("name", ["vocab.json", "vocab.model"])
@pytest.mark.parametrize("content", [b"", b"hello", b"{}", b"\xff" * 100, bytes(1000)])
def test_anything_else_is_one_message(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert "a tokenizer of a format that is not read here" in message_of(path)


@pytest.mark.parametrize("name", ["vocab.json", "vocab.txt", "vocab.model"])
def test_a_file_that_is_not_there_is_one_message(tmp_path: Path, name: str) -> None:
    assert "there is no tokenizer file" in message_of(tmp_path / name)


def test_pieces_that_are_not_utf8_are_one_message(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    content = token_case.trained()
    assert content.count(b"the") == 1
    path.write_bytes(content.replace(b"the", b"t\xace"))
    assert "no SentencePiece model" in message_of(path)


def test_an_empty_vocabulary_is_one_message(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {}, "merges": []}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    assert "found: no tokens in it" in message_of(path)


@pytest.mark.parametrize("merge", ["a b", ["a", "b"], [], 5])
def test_a_merge_without_its_prefix_is_one_message(tmp_path: Path, merge: object) -> None:
    """The library would end the process."""
    vocab = {"a": 0, "b": 1, "ab": 2}
    model = {"type": "BPE", "vocab": vocab, "merges": [merge], "continuing_subword_prefix": "##"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    assert "without the prefix '##'" in message_of(path)


def test_a_vocabulary_with_numbers_is_read(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("abc 1\nthe\n'a' 2\n")
    file = TokenizerFile(str(path), "none")
    assert open_tokenizer(file).size == 5

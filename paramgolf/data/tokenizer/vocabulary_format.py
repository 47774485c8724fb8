"""Which format a tokenizer's file has, told by how it begins: those that are not read are named."""

from __future__ import annotations

import re
from pathlib import Path

from paramgolf.data.tokenizer.sentencepiece_model import other_format
from paramgolf.errors import ParamGolfError

BEGINNING_BYTES = 1 << 16
_STRING = rb'"(?:[^"\\]|\\.)*"'
# what a file of each format begins with; a few lines, where one could be a token of a vocabulary
OTHERS = {
    "a tiktoken file of ranks": rb"(?:[A-Za-z0-9+/]+={0,2} \d+\r?\n){3}",
    "a tekken file": rb'\s*\{(?s:.)*?"token_bytes"\s*:',
    "an RWKV vocabulary": rb"(?:\d+ b?(?:'.*'|\".*\") \d+\r?\n){3}",
    "a BERT vocabulary (WordPiece)": rb"(?=(?s:.)*^\[CLS\]\r?$)(?=(?s:.)*^\[SEP\]\r?$)",
    "a table of tokens and ids, half of a GPT-2 tokenizer": rb"\s*\{\s*"
    + _STRING
    + rb"\s*:\s*\d+[\s,}]",
    "merges, half of a GPT-2 tokenizer": rb"#version: ",
    "a SentencePiece vocabulary, a listing without the model": rb"<unk>\t0\r?\n",
    "a GGUF model": rb"GGUF",
    "a pickle or a PyTorch file": rb"PK\x03\x04|\x80[\x02-\x05]",
}


def refuse_other_formats(path: Path) -> None:
    """Refuse a missing file, and one of a known format that no reader here is for, by its name."""
    if not path.is_file():  # a pipe is none either: reading it would wait for a writer
        raise ParamGolfError("there is no tokenizer file", where=path, fix="set tokenizer.path")
    with open(path, "rb") as file:
        beginning = file.read(BEGINNING_BYTES)
    for name, pattern in OTHERS.items():
        if re.match(pattern, beginning, re.MULTILINE):
            raise other_format(path, found=name)

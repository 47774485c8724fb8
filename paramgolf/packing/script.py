"""What a packed train_gpt.py holds, read back out of it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brotli

from paramgolf.errors import ParamGolfError
from paramgolf.files import file_size, parse_object

FIX = "make it again: `dvc repro package`"
# of a program; ours have some 120 KB in 150 modules
MOST_BYTES, MOST_PARTS = 2**24, 10_000
# of a file that is none: Python's parser has its own words for an expression that is too deep
FAULTS = OSError, SyntaxError, ValueError, TypeError, RecursionError, MemoryError, brotli.error


@dataclass(frozen=True, slots=True)
class PackedScript:
    """The contents of a train_gpt.py: `params` by section, `sources` by module."""

    params: Mapping[str, Any]
    sources: Mapping[str, str]


def read_script(path: Path) -> PackedScript:
    """Take a train_gpt.py apart without running it; one that package did not write is an error."""
    file_size(path, fix=FIX)
    try:
        tree = ast.parse(path.read_bytes())
        (text,) = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKED"
        ]
        _, params, *content = _unpacked(str(text)).split("\0", MOST_PARTS)
        sources = dict(zip(content[0::2], content[1::2], strict=True))
        return PackedScript(parse_object(params, path), sources)
    except FAULTS as error:
        raise ParamGolfError("not a packed script", where=path, found=error, fix=FIX) from None


def _unpacked(text: str) -> str:
    """Decompress what PACKED holds; more than any program has is a ValueError."""
    decoder = brotli.Decompressor()
    content = decoder.process(text.encode("latin-1"), output_buffer_limit=MOST_BYTES)
    if not decoder.is_finished():
        raise ValueError(f"cut short, or longer than {MOST_BYTES:,} bytes")
    return str(content, "utf-8")

"""What a packed train_gpt.py holds, read back out of it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brotli

from paramgolf.errors import ParamGolfError
from paramgolf.files import parse_object


@dataclass(frozen=True, slots=True)
class PackedScript:
    """The contents of a train_gpt.py: `params` by section, `sources` by module."""

    params: Mapping[str, Any]
    sources: Mapping[str, str]


def read_script(path: Path) -> PackedScript:
    """Take a train_gpt.py apart without running it; one that package did not write is an error."""
    try:
        tree = ast.parse(path.read_bytes())
        (text,) = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKED"
        ]
        unpacked = brotli.decompress(str(text).encode("latin-1")).decode()
        _, params, *content = unpacked.split("\0")
        sources = dict(zip(content[0::2], content[1::2], strict=True))
        return PackedScript(parse_object(params, path), sources)
    except (SyntaxError, ValueError, brotli.error) as error:
        fix = "make it again: `dvc repro package`"
        raise ParamGolfError("not a packed script", where=path, found=error, fix=fix) from None

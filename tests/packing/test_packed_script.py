"""A train_gpt.py that package did not write is one message, whatever it holds."""

from __future__ import annotations

import brotli
import pytest

from paramgolf.errors import ParamGolfError
from paramgolf.packing.script import MOST_BYTES, read_script


def packed(content: bytes) -> str:
    return f"PACKED = {brotli.compress(content, quality=5).decode('latin-1')!r}\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "print('hello')",
        "PACKED = 3",
        "PACKED = 1 +",
        "PACKED = " + "+".join(["1"] * 50_000),
        "PACKED = a" + ".b" * 50_000,
        "PACKED = " + "-" * 200_000 + "1",
        "PACKED = {[]: 1}",
        "PACKED = 'no brotli'",
        packed(bytes(MOST_BYTES + 1)),
        packed(b"\0{}\0a module without its source"),
    ],
    ids=lambda text: text[:24],
)
def test_another_script_is_refused(tmp_path, text):
    path = tmp_path / "train_gpt.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ParamGolfError, match=r"not a packed script(.|\n)*train_gpt\.py"):
        read_script(path)


def test_a_script_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ParamGolfError, match="there is no file"):
        read_script(tmp_path / "train_gpt.py")

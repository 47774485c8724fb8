"""A hash of Python code that comments, docstrings and layout do not change.

DVC's stages and the key of a resumed run depend on it, so that explaining the code costs no
training run. It goes by tokens: the text of `ast.dump` differs between versions of Python, and
tokens do not, but for f-strings.
"""

from __future__ import annotations

import functools
import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator, Mapping

LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
BLOCKS = {tokenize.INDENT: ">", tokenize.DEDENT: "<"}  # however wide the indentation
STRUCTURE = {tokenize.NEWLINE: "\n", **BLOCKS}
# Python 3.12 began to take f-strings apart, 3.14 has template strings; before, each was one token
OPENING = {getattr(tokenize, f"{kind}STRING_START", None) for kind in "FT"}
CLOSING = {getattr(tokenize, f"{kind}STRING_END", None) for kind in "FT"}

Token = tuple[int, str]  # kind, text


def code_hash(sources: Mapping[str, str]) -> str:
    """Return the SHA-256, in hexadecimal, of modules' code: `sources` maps their names to text."""
    digest = hashlib.sha256()
    for name, source in sorted(sources.items()):
        digest.update(f"{name}\0{code_of(source)}\0".encode())
    return digest.hexdigest()


@functools.cache  # stages share most of their modules
def code_of(source: str) -> str:
    """Return the tokens of `source` that do something, joined by a character that none holds."""
    return "\x1f".join(text for line in _logical_lines(source) for _, text in line)


def _logical_lines(source: str) -> Iterator[list[Token]]:
    """Yield the tokens of each statement line, without docstrings and other lone texts."""
    line: list[Token] = []
    for kind, text in _tokens(source):
        line.append((kind, text))
        if kind == tokenize.NEWLINE:
            # the depth of what follows stays even where a lone text is left out
            yield [t for t in line if t[0] in BLOCKS] if _is_lone_text(line) else line
            line = []
    yield line


def _is_lone_text(line: Iterable[Token]) -> bool:
    """Tell whether a line is a string that nobody reads; an f-string's expressions could act."""
    words = [token for token in line if token[0] not in STRUCTURE]
    return all(kind == tokenize.STRING and not _is_formatted(text) for kind, text in words)


def _is_formatted(text: str) -> bool:
    prefix = text[: min(text.find(quote) for quote in "'\"" if quote in text)]
    return "f" in prefix.lower()


def _tokens(source: str) -> Iterator[Token]:
    """Yield kind and text of each token but layout; an f-string is one token, as written."""
    lines = io.StringIO(source).readlines()
    depth, start = 0, (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in OPENING:
            depth, start = depth + 1, start if depth else token.start
        elif token.type in CLOSING:
            depth -= 1
            if not depth:
                yield tokenize.STRING, _between(lines, start, token.end)
        elif not depth and token.type not in LAYOUT:
            yield token.type, STRUCTURE.get(token.type, token.string)


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """Return the text between two (row, column) places; rows count from 1."""
    (first, left), (last, right) = start, end
    if first == last:
        return lines[first - 1][left:right]
    middle = lines[first : last - 1]
    return "".join([lines[first - 1][left:], *middle, lines[last - 1][:right]])

r"""A vocabulary as a text file: one token a line, encoded by the longest match at each place.

A line is a token in UTF-8; `\n`, `\r`, `\t`, `\\` and `\xNN` (one byte) stand for what cannot be
written plainly. The first line is token 0. BOS is added after the last, and after it a token for
unknown bytes where some byte is no token by itself. Matching is on bytes: at each place the longest
token is taken, then the next place is behind it. There is no transform: a vocabulary that was made
for one (TokenMonster's capcode, pg#1143) encodes plain text badly, yet its bytes are counted right.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from paramgolf.data.manifests import TABLE_RULE
from paramgolf.data.tokenizer.vocabulary_format import refuse_other_formats
from paramgolf.errors import ParamGolfError

_ESCAPE = re.compile(rb"\\(x[0-9A-Fa-f]{2}|[\\nrt]|)")
_PLAIN = {b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class TextVocabulary:
    """Ids, text and bytes of a vocabulary file."""

    rule = TABLE_RULE

    def __init__(self, path: Path) -> None:
        tokens = read_tokens(path)
        self.bos = len(tokens)
        self._unknown = self.bos + 1
        single = sum(len(token) == 1 for token in tokens)
        self.size = len(tokens) + (1 if single == 256 else 2)
        self._tokens = [*tokens, b"", b""]
        self._sizes = np.array([len(token) for token in self._tokens])
        self._trie = Trie(tokens)

    def encode(
        self, texts: list[str], *, count_bytes: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield ids of each text, and their bytes where asked: unknown bytes count 0."""
        for text in texts:
            ids = self._trie.greedy(text.encode(), self._unknown)
            yield ids, self._sizes[ids] if count_bytes else None

    def decode(self, ids: np.ndarray) -> bytes:
        """Return the bytes of the tokens; unknown ones give none."""
        return b"".join([self._tokens[i] for i in ids.tolist()])

    def excesses(self, ids: np.ndarray) -> dict[int, str]:
        """Return the bytes by which the fault of pg#1143 would count `ids` too high."""
        tokens = [self._tokens[i] for i in ids.tolist()]
        excess = sum(len(token.decode(errors="replace").encode()) - len(token) for token in tokens)
        return {excess: ": tokens that are no whole character are counted as U+FFFD (pg#1143)"}


def read_tokens(path: Path) -> list[bytes]:
    """Read the tokens of a vocabulary file in order; empty and repeated ones are refused."""
    refuse_other_formats(path)
    tokens: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        where = f"{path}, line {number}"
        token = _ESCAPE.sub(functools.partial(_unescape, where), line)
        if not token or token in tokens:
            what = "a token comes twice" if token else "a token is empty"
            found = ascii(line.decode(errors="backslashreplace"))
            raise ParamGolfError(f"{what} in a vocabulary file", where=where, found=found)
        tokens[token] = number
    return list(tokens)


def _unescape(where: str, match: re.Match[bytes]) -> bytes:
    escape = match[1]
    if not escape:
        raise ParamGolfError(
            "an unknown escape in a vocabulary file",
            where=where,
            expected=r"\n, \r, \t, \\ or \xNN",
            fix=r"write a backslash as \\",
        )
    return _PLAIN[escape] if escape in _PLAIN else bytes.fromhex(escape[1:].decode())


class Trie:
    """Finds the longest token at every place of a text, one byte of all places at a time."""

    def __init__(self, tokens: list[bytes]) -> None:
        nodes = {b"": 0}
        for token in tokens:
            for end in range(1, len(token) + 1):
                nodes.setdefault(token[:end], len(nodes))
        # 1 KiB a node; 0, the root, is nobody's child
        self._children = np.zeros((len(nodes), 256), dtype=np.int32)
        self._ids = np.full(len(nodes), -1, dtype=np.int32)
        for prefix, node in nodes.items():
            if prefix:
                self._children[nodes[prefix[:-1]], prefix[-1]] = node
        for index, token in enumerate(tokens):
            self._ids[nodes[token]] = index

    def longest(self, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the longest token int32 [n] that begins at each byte (-1: none), and its bytes.

        `text` is uint8 [n]; where no token begins, the length is 1.
        """
        ids, lengths = np.full(len(text), -1, dtype=np.int32), np.ones(len(text), dtype=np.int64)
        places, nodes, depth = np.arange(len(text)), np.zeros(len(text), dtype=np.int32), 0
        while len(places):
            nodes = self._children[nodes, text[places + depth]]
            depth += 1
            found = self._ids[nodes]
            ends = found >= 0
            ids[places[ends]], lengths[places[ends]] = found[ends], depth
            alive = (nodes > 0) & (places + depth < len(text))
            places, nodes = places[alive], nodes[alive]
        return ids, lengths

    def greedy(self, text: bytes, unknown: int) -> np.ndarray:
        """Return the ids int32 of a text; a byte where no token begins is `unknown`."""
        ids, lengths = self.longest(np.frombuffer(text, dtype=np.uint8))
        behind = (np.arange(len(ids)) + lengths).tolist()
        taken, place = [], 0
        while place < len(behind):
            taken.append(place)
            place = behind[place]
        found = ids[np.array(taken, dtype=np.int64)]
        return np.where(found < 0, np.int32(unknown), found)

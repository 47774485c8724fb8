"""Which token can follow which: pairs that a tokenizer never writes have no probability.

A BPE tokenizer never writes some tokens side by side, because it would have merged across the seam
(arXiv 2506.07956). SentencePiece merges any two neighboring symbols whose joint text is a piece,
the piece of the highest score first, of equals the leftmost. Nothing merges across the bounds of
tokens, so each token of a text is made as if it stood alone, and so is each pair of neighbors: a
pair occurs only if no merge across its seam is ever the best one.

    clock   the lowest score merged so far: a merge of a higher score than that follows at once
    period  what stands beside the seam, from the clock at which it was born to that of its death

A merge a + b -> c across the seam is made exactly if the periods of a and b meet and c scores
higher than the least of what is merged in the time that they share.

Besides merges: a character that is no piece is spelt in bytes, and one that is never is; control
tokens other than BOS do not occur; and the case transform has a grammar
(paramgolf.data.tokenizer.caseops). A pair is forbidden only where this proves that it cannot occur.
What stands behind an ESCAPE is literal, so that nothing is known of what follows it.
"""

from __future__ import annotations

import itertools
import math
import string
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece

from paramgolf.data.special_tokens import BOS, MARKS, SPACE, Transform
from paramgolf.data.token_set import TokenSet
from paramgolf.data.tokenizer.sentencepiece_model import read_model
from paramgolf.errors import ParamGolfError

# code points by the number of their bytes in UTF-8; surrogates are no characters
UTF8_BOUNDS = (0, 0x80, 0x800, 0x10000, 0x110000)
SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True, slots=True)
class TokenMask:
    """The pairs of a vocabulary of V tokens, by the ids of the shards.

    allowed: bool [V + 1, V], by the state before a token and the token. A state is the token
    before; in state V nothing is known of it, and every token is allowed.
    escape: the token behind which a token is literal and leaves state V; -1: none.
    marks: the tokens that leave state V where it is not known what stands before them.
    """

    allowed: np.ndarray
    escape: int
    marks: tuple[int, ...]

    def forbidden(self, tokens: np.ndarray) -> np.ndarray:
        """Return the targets of a text `tokens` [N + 1] that cannot come, int64 [n].

        Target j is token j + 1.
        """
        states = tokens[:-1].astype(np.int64)
        states[1:][tokens[:-2] == self.escape] = len(self.allowed) - 1
        if len(states) and states[0] in self.marks:
            states[0] = len(self.allowed) - 1
        return np.flatnonzero(~self.allowed[states, tokens[1:]])

    def check(self, tokens: np.ndarray) -> None:
        """Refuse a text `tokens` [N + 1] of which a target cannot come: the mask would be wrong."""
        wrong = self.forbidden(tokens)
        if len(wrong):
            before, token = tokens[wrong[0] : wrong[0] + 2].tolist()
            raise ParamGolfError(
                "token_mask forbids tokens that the text has",
                where=f"target {wrong[0]}: token {token} after {before}",
                expected="none, if the tokens are those of data/tokens' SentencePiece BPE model",
                found=f"{len(wrong)} of {len(tokens) - 1} targets",
                fix="set token_mask to false in train, eval_sliding and eval_ttt",
            )

    @property
    def words(self) -> np.ndarray:
        """The table in bits, int32 [V + 1, ceil(V / 32)]: of token v bit v % 32 of word v // 32."""
        packed = np.packbits(self.allowed, axis=1, bitorder="little")
        padded = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))
        return padded.view("<i4").astype(np.int32)


def has_mask(tokens: TokenSet) -> bool:
    """Tell if the tokenizer is of the kind whose pairs are known, by its file."""
    return tokens.manifest.tokenizer.endswith(".model")


def mask_of(tokens: TokenSet) -> TokenMask:
    """Return the mask of a folder of tokens, from the tokenizer that lies in it."""
    manifest = tokens.manifest
    path = tokens.folder / manifest.tokenizer
    if not has_mask(tokens):
        raise ParamGolfError(
            "token_mask needs a SentencePiece BPE model, whose pairs are known",
            where=path,
            fix="set token_mask to false in train, eval_sliding and eval_ttt",
        )
    return build_mask(path, manifest.transform)


def build_mask(path: str | Path, transform: Transform) -> TokenMask:
    """Return the mask of a SentencePiece BPE model of text in `transform`."""
    model = read_model(path)
    caseops = transform != "none"
    pairs = _Pairs(model, caseops=caseops)
    pairs.merge()
    pairs.spell()
    pairs.end_documents()
    if caseops:
        pairs.mark_capitals(before_space=transform == "caseops_before_space")
    pairs.finish()
    # in the shards BOS has changed places with token 1
    allowed, ids = pairs.allowed, [BOS, model.bos_id()]
    allowed[ids] = allowed[ids[::-1]]
    allowed[:, ids] = allowed[:, ids[::-1]]
    escape = pairs.marks[3] if caseops else -1
    return TokenMask(allowed, escape, pairs.marks)


class _Pairs:
    """The table of a model, `allowed` bool [V + 1, V], while one rule after another is applied."""

    def __init__(self, model: sentencepiece.SentencePieceProcessor, *, caseops: bool) -> None:
        tokens = range(model.vocab_size())
        pieces = [model.id_to_piece(i) for i in tokens]
        self.marks = tuple(pieces.index(mark) for mark in MARKS) if caseops else ()
        self._bos, self._unknown = model.bos_id(), model.unk_id()
        self._bytes = {int(pieces[i].strip("<>"), 16): i for i in tokens if model.is_byte(i)}
        others = {i for i in tokens if model.is_control(i) or model.is_unused(i)}
        others |= {*self._bytes.values(), model.unk_id()}
        self._scores = {pieces[i]: model.get_score(i) for i in tokens if i not in others}
        # characters that no text has: a space is SPACE, and the transform has no capitals
        self._absent = {" ", *(string.ascii_uppercase if caseops else "")}
        self._texts = {
            i: pieces[i] for i in tokens if i not in others and not self._absent & {*pieces[i]}
        }
        # where a character can begin and end, and so a text
        self._begins, self._ends = (np.zeros(len(pieces), dtype=bool) for _ in range(2))
        self.allowed = np.zeros((len(pieces) + 1, len(pieces)), dtype=bool)

    def merge(self) -> None:
        """Allow pieces side by side, but for those that would merge across their seam."""
        sides = _Side(-1), _Side(0)
        for token, text in self._texts.items():
            merges = list(_merges(text, self._scores))
            if len(text) == 1 + len(merges):  # else the piece is never written
                self._ends[token] = True
                for side in sides:
                    side.add(token, text, merges)
        self._begins[self._ends] = True
        np.logical_and(self._ends[:, None], self._begins, out=self.allowed[:-1])
        (places, left), (other_places, right) = (side.table() for side in sides)
        seams = []
        for piece, score in self._scores.items():
            for cut in range(1, len(piece)):
                one, two = places.get(piece[:cut]), other_places.get(piece[cut:])
                if one and two:
                    # of equal scores the leftmost is first: the left's, the seam's, the right's
                    seams.append(
                        (one[0], bisect_left(one[1], score), two[0], bisect_right(two[1], score))
                    )
        # all pairs of a period at the left and one at the right, of one seam after another
        starts, counts, other_starts, other_counts = np.array(seams, np.int64).reshape(-1, 4).T
        each = other_counts.repeat(counts)
        i = _ranges(starts, counts).repeat(each)
        j = _ranges(other_starts.repeat(counts), each)
        meet = (left["born"][i] >= right["died"][j]) & (left["died"][i] < right["born"][j])
        pairs = self.allowed.ravel()  # a view, by one index: half the time of two
        pairs[left["token"][i[meet]] * len(self._ends) + right["token"][j[meet]]] = False

    def spell(self) -> None:
        """Allow the bytes of the characters that are no pieces, or the unknown token."""
        if not self._bytes:
            unknown = self._unknown
            self.allowed[unknown] = self._begins
            self.allowed[:-1, unknown] = self._ends
            self._begins[unknown] = self._ends[unknown] = True
            return
        ids = np.array([self._bytes[byte] for byte in range(256)])
        known = [*self._absent, *(piece for piece in self._scores if len(piece) == 1)]
        spelt = np.ones(UTF8_BOUNDS[-1], dtype=bool)
        spelt[[*map(ord, known), *SURROGATES]] = False
        first, last = (np.zeros(256, dtype=bool) for _ in range(2))
        for size, (begin, end) in enumerate(itertools.pairwise(UTF8_BOUNDS), 1):
            points = (begin + np.flatnonzero(spelt[begin:end])).astype("<u4")
            text = points.tobytes().decode("utf-32-le").encode()
            characters = np.frombuffer(text, dtype=np.uint8).reshape(-1, size)
            first[characters[:, 0]], last[characters[:, -1]] = True, True
            for i in range(1, size):
                self.allowed[ids[characters[:, i - 1]], ids[characters[:, i]]] = True
        self.allowed[ids[last]] |= self._begins
        self._begins[ids[first]] = self._ends[ids[last]] = True
        self.allowed[np.ix_(self._ends, ids[first])] = True

    def end_documents(self) -> None:
        """Allow BOS behind whole characters, and any of them behind BOS."""
        self.allowed[self._bos] = self._begins
        self.allowed[:-1, self._bos] = self._ends
        self.allowed[self._bos, self._bos] = True

    def mark_capitals(self, *, before_space: bool) -> None:
        """Forbid what the case transform never writes."""
        title, all_caps, cap_next, escape = self.marks
        texts = self._texts | {i: chr(byte) for byte, i in self._bytes.items() if byte < 0x80}
        small, size = set(string.ascii_lowercase), len(self._ends)
        ends, inner, capital, capitals = (np.zeros(size, dtype=bool) for _ in range(4))
        for token, text in texts.items():
            ends[token], inner[token] = text[-1] in small, text[0] in small
            word = text.removeprefix(SPACE) if before_space else text
            # all of a token, or at least one letter of it and two
            capital[token] = small.issuperset(word[:1])
            capitals[token] = small.issuperset(word[:2])
        # CAP_NEXT stands between small letters, and before words TITLE, or ALL_CAPS where they have
        # two letters or more
        self.allowed[cap_next] &= inner
        self.allowed[:-1][~ends, cap_next] = False
        self.allowed[title] &= capital
        self.allowed[all_caps] &= capitals
        if not before_space:
            self.allowed[:-1][ends, title] = self.allowed[:-1][ends, all_caps] = False
        self.allowed[escape] = False
        self.allowed[escape, self.marks] = True

    def finish(self) -> None:
        """Allow everything in a state that no text has, or of which nothing is known."""
        self.allowed[~self.allowed.any(1)] = True


# the least score that is merged in it, the piece, and clocks
PERIOD = np.dtype([("bar", "f8"), ("token", "i8"), ("born", "f8"), ("died", "f8")])


class _Side:
    """What stands at one end of each piece, the last symbol or the first, while it is merged."""

    def __init__(self, end: Literal[-1, 0]) -> None:
        self._end = end
        self._periods: dict[str, list[tuple[float, int, float, float]]] = defaultdict(list)

    def add(self, token: int, text: str, merges: list[tuple[float, list[str]]]) -> None:
        """Add the periods of a piece, from its merges: their scores, and the symbols they leave."""
        symbol, born, clock, bar = text[self._end], math.inf, math.inf, math.inf
        for score, symbols in merges:
            bar = min(bar, score)
            if symbols[self._end] != symbol:
                clock = min(clock, bar)
                self._periods[symbol].append((bar, token, born, clock))
                symbol, born, bar = symbols[self._end], clock, math.inf
        self._periods[symbol].append((-math.inf, token, born, -math.inf))

    def table(self) -> tuple[dict[str, tuple[int, list[float]]], np.ndarray]:
        """Return all periods, PERIOD [n], and by symbol where its own begin, and their bars.

        Those of a symbol lie side by side, their bars ascend.
        """
        places: dict[str, tuple[int, list[float]]] = {}
        every: list[tuple[float, int, float, float]] = []
        for symbol, periods in self._periods.items():
            periods.sort()
            places[symbol] = len(every), [period[0] for period in periods]
            every += periods
        return places, np.array(every, PERIOD)


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return start, start + 1, ... of each range, one range after another, int64."""
    numbers: np.ndarray = (starts - counts.cumsum() + counts).repeat(counts)
    numbers += np.arange(len(numbers))
    return numbers


def _merges(text: str, scores: Mapping[str, float]) -> Iterator[tuple[float, list[str]]]:
    """Yield the score of each merge of a text, and the symbols that it leaves."""
    symbols = [*text]
    while True:
        joined = [a + b for a, b in itertools.pairwise(symbols)]
        found = [scores.get(piece, -math.inf) for piece in joined]
        best = max(found, default=-math.inf)
        if best == -math.inf:
            return
        at = found.index(best)
        symbols[at : at + 2] = [joined[at]]
        yield best, [*symbols]

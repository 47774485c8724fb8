"""How much of each validation document occurs in the training text, ignoring case and spacing.

Only the letters of a text are compared: ASCII letters in lower case, digits, and all bytes beyond
ASCII, with nothing between them. Every WINDOW consecutive letters are a shingle (Broder 1997, "On
the resemblance and containment of documents"). A document's share is the share of its shingles that
occur anywhere in the training text. A shingle is represented by a 64-bit hash

    h = sum over i < WINDOW of letter_i B^i  mod 2^64

which cumulative sums give for all places at once, since B is odd and so has an inverse. Of a large
validation text only the shingles are kept whose hash lies in the lowest of `every` equal ranges.
The training text is sampled in the same way, so that shares are measured without bias, in bounded
memory. docs/legality.md says what this detects and what it does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

WINDOW = 50
MOST_HELD = 1 << 22  # shingles of validation; more would take longer to look up
BLOCK = 1 << 15  # places hashed at once: what is computed of them stays in a core's cache
AT_ONCE = 1 << 22  # places looked up at once
MULTIPLIER = 0x9E3779B97F4A7C15  # B
KEPT = bytes(i for i in range(256) if i >= 0x80 or chr(i).isalnum())
DROPPED = bytes(i for i in range(256) if i not in KEPT)
SMALL = bytes(i + 32 if ord("A") <= i <= ord("Z") else i for i in range(256))
SEPARATOR = b"\xff" * (WINDOW - 1)  # around each document: no UTF-8 holds it


def letters(text: bytes) -> bytes:
    """Return what is compared of a text."""
    return text.translate(SMALL, DROPPED)


def _powers(base: int) -> np.ndarray:
    return np.cumprod(np.full(BLOCK + WINDOW, base, np.uint64))


POWERS, INVERSES = _powers(MULTIPLIER), _powers(pow(MULTIPLIER, -1, 2**64))


def hashes(text: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the hashes of the shingles of letters uint8 [n], uint64 [n - WINDOW + 1] in parts."""
    for start in range(0, len(text) - WINDOW + 1, BLOCK):
        part = text[start : start + BLOCK + WINDOW - 1]
        sums = np.zeros(len(part) + 1, np.uint64)
        np.cumsum(part * POWERS[: len(part)], out=sums[1:])
        yield (sums[WINDOW:] - sums[:-WINDOW]) * INVERSES[: len(part) - WINDOW + 1]


class Shingles:
    """Shingles of validation documents, and which of them the training text holds.

    `texts` hold whole documents, uint8 [n]: SEPARATOR and letters of each, SEPARATOR at the end. A
    document of fewer than WINDOW letters has one shingle, filled up with the separators around it:
    one of the same letters alone has it too.
    """

    def __init__(self, texts: Iterable[np.ndarray], every: int) -> None:
        held: list[np.ndarray] = []
        owners: list[np.ndarray] = []
        self.every, self.documents = every, 0
        self._bound = np.uint64(2**64 // every - 1)
        for text in texts:
            places, counts = _shingles_of(text)
            found = np.concatenate([*hashes(text), np.empty(0, np.uint64)])[places]
            owner = np.repeat(np.arange(len(counts)) + self.documents, counts)
            chosen = found <= self._bound
            held.append(found[chosen])
            owners.append(owner[chosen])
            self.documents += len(counts)
        self._owners = np.concatenate(owners)
        self._held, self._indices = np.unique(np.concatenate(held), return_inverse=True)
        self._met = np.zeros(len(self._held), bool)
        # a small table of upper bits, at which the look-up of most places ends
        bits = (8 * len(self._held)).bit_length()
        self._shift = np.uint64(max(0, int(self._bound).bit_length() - bits))
        self._known = np.zeros(int(self._bound >> self._shift) + 1, bool)
        self._known[self._held >> self._shift] = True

    def meet(self, text: np.ndarray) -> None:
        """Note the shingles of training text, letters uint8 [n]; threads may do so at once."""
        for start in range(0, len(text), AT_ONCE):
            part = text[start : start + AT_ONCE + WINDOW - 1]
            sampled = [found[found <= self._bound] for found in hashes(part)]
            chosen = np.concatenate([*sampled, np.empty(0, np.uint64)])
            chosen.sort()  # what is looked up in order is found in the cache
            chosen = chosen[self._known[chosen >> self._shift]]
            places = np.searchsorted(self._held, chosen).clip(max=len(self._held) - 1)
            self._met[places[self._held[places] == chosen]] = True

    def shares(self) -> np.ndarray:
        """Return the share of each document's shingles that was met, float64 [documents].

        It is NaN where no shingle of a document is held: it has no letters, or all of its few
        shingles lie outside the sample.
        """
        total = np.bincount(self._owners, minlength=self.documents)
        met = np.bincount(self._owners, self._met[self._indices], self.documents)
        unknown = np.full(self.documents, math.nan)
        shares: np.ndarray = np.divide(met, total, out=unknown, where=total > 0)
        return shares


def _shingles_of(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where shingles begin, int64, and how many each document has, int64 [documents]."""
    marks = np.flatnonzero(text == SEPARATOR[0]).reshape(-1, len(SEPARATOR))
    begins, ends = marks[:-1, -1] + 1, marks[1:, 0]
    sizes = ends - begins
    counts = np.where(sizes > 0, np.maximum(sizes - WINDOW + 1, 1), 0)
    firsts = np.where(sizes < WINDOW, ends + 1 - WINDOW, begins) - (np.cumsum(counts) - counts)
    return np.arange(counts.sum()) + np.repeat(firsts, counts), counts


class TokenLetters:
    """The letters that tokens stand for, looked up; decoding them as text takes four times as long.

    `texts` are the bytes that each token decodes to by itself; a separator stands before documents,
    as the letters of their BOS. A token that is no whole character has 3 bytes of its own: those of
    two such tokens differ, and both splits are written by one tokenizer.
    """

    def __init__(self, texts: Sequence[bytes], bos: int) -> None:
        table = [_own(i) if "\ufffd".encode() in t else letters(t) for i, t in enumerate(texts)]
        table[bos] = SEPARATOR
        self._flat = np.frombuffer(b"".join(table), np.uint8)
        self._sizes = np.array([len(entry) for entry in table])
        self._starts = np.cumsum(self._sizes) - self._sizes

    def of(self, ids: np.ndarray) -> np.ndarray:
        """Return what Shingles takes of whole documents, tokens uint16 [n]."""
        parts = [self._of(ids[i : i + BLOCK]) for i in range(0, len(ids), BLOCK)]
        return np.concatenate([*parts, np.frombuffer(SEPARATOR, np.uint8)])

    def _of(self, ids: np.ndarray) -> np.ndarray:
        sizes = self._sizes[ids]
        ends = np.cumsum(sizes)
        places = np.arange(ends[-1]) + np.repeat(self._starts[ids] - (ends - sizes), sizes)
        found: np.ndarray = self._flat[places]
        return found


def _own(token: int) -> bytes:
    return bytes(0x80 | token >> shift & 0x3F for shift in (12, 6, 0))

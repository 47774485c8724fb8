"""CaseOps: text with its capitals written as marks before lower-case letters, and back (#1729).

Only runs of ASCII letters change, each run as one word: two or more letters, all capitals, are
ALL_CAPS and the word in small letters; else a first capital is TITLE, each later one CAP_NEXT. A
mark that stands in the text itself is written after ESCAPE. So every text has one transform, and
`decode` gives every text back; small and capital ASCII letters have the same number of bytes.
"""

from __future__ import annotations

import re

TITLE, ALL_CAPS, CAP_NEXT, ESCAPE = MARKS = "\ue001\ue002\ue003\ue004"

# a run from its first capital on, whether letters stand before it or not; or a mark
_MARKED = re.compile(r"(?<![A-Za-z])([A-Z][A-Za-z]*)|([A-Z][A-Za-z]*)|([\ue001-\ue004])")
_CAPITAL = re.compile("[A-Z]")
_ENCODED = re.compile("\ue004(.?)|[\ue001\ue003]([a-z]?)|\ue002([a-z]*)")


def encode(text: str) -> str:
    """Return `text` in small ASCII letters, with marks where capitals were."""
    return _MARKED.sub(_mark, text)


def decode(text: str) -> str:
    """Return the original of an encoded text; a mark that nothing follows stands for nothing."""
    return _ENCODED.sub(_unmark, text)


def _mark(match: re.Match[str]) -> str:
    word, tail, mark = match.groups()
    if mark:
        return ESCAPE + mark
    if tail:
        return _mark_capitals(tail)
    if len(word) == 1 or word[1:].islower():
        return TITLE + word.lower()
    if word.isupper():
        return ALL_CAPS + word.lower()
    return TITLE + word[0].lower() + _mark_capitals(word[1:])


def _mark_capitals(letters: str) -> str:
    return _CAPITAL.sub(lambda match: CAP_NEXT + match[0], letters).lower()


def _unmark(match: re.Match[str]) -> str:
    literal, letter, word = match.groups()
    return literal if literal is not None else (letter or word or "").upper()

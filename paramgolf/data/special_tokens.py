"""Ids that every set of shards fixes, and the names of the transforms of their text.

BOS is token 1, as in the published shards: where a tokenizer has another id for it, the two change
places. The aliases are the byte-fallback tokens of U+0000 to U+0002, which `fuse_markers` makes
stand for a space and the case mark TITLE, ALL_CAPS or CAP_NEXT behind it (pg#2109). The network
reads this module too, so it imports nothing.
"""

from __future__ import annotations

from typing import Final, Literal

BOS: Final = 1
ALIASES = (8, 9, 10)
SPACE = "\u2581"
TITLE, ALL_CAPS, CAP_NEXT, ESCAPE = MARKS = "\ue001\ue002\ue003\ue004"

# what becomes of a text before it is tokenized (caseops.py)
Transform = Literal["none", "caseops", "caseops_before_space"]

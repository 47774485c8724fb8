"""Ids that every set of shards fixes, and the names of the transforms of their text.

BOS is token 1, as in the published shards: where a tokenizer has another id for it, the two change
places. The network reads this module too, so it imports nothing.
"""

from __future__ import annotations

from typing import Final, Literal

BOS: Final = 1
SPACE = "\u2581"
TITLE, ALL_CAPS, CAP_NEXT, ESCAPE = MARKS = "\ue001\ue002\ue003\ue004"

# what becomes of a text before it is tokenized (caseops.py)
Transform = Literal["none", "caseops", "caseops_before_space"]

"""BOS is token 1 of every shard, whatever a tokenizer calls its own: two ids change places."""

from __future__ import annotations

import numpy as np

BOS = 1


def exchange(vocab_size: int, own: int) -> np.ndarray:
    """Return uint16 [vocab_size] that maps ids of a tokenizer to those of the shards, and back.

    `own`, the tokenizer's BOS, becomes 1 and its 1 becomes `own`; all others stay.
    """
    ids = np.arange(vocab_size, dtype=np.uint16)
    ids[[BOS, own]] = ids[[own, BOS]]
    return ids

"""The documents of a token stream: a document begins at each BOS."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paramgolf.data.shards import Stream
from paramgolf.errors import ParamGolfError

BLOCK_TOKENS = 1 << 22


def split_documents(stream: Stream, bos: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start, tokens) of each document, its BOS included; memory holds a block of tokens.

    A stream that does not begin with BOS is refused: its documents could not be told apart (#1779).
    """
    if len(stream) and stream.read(0, 1)[0] != bos:
        raise ParamGolfError(
            "a token stream does not begin with BOS (#1779)",
            expected=f"token {bos} before each document",
            found=f"token {int(stream.read(0, 1)[0])}",
            fix="write the shards with BOS before each document: `dvc repro -f -s retokenize`",
        )
    for begin, block in whole_documents(stream, bos):
        starts = np.flatnonzero(block == bos).tolist()
        for start, stop in zip(starts, [*starts[1:], len(block)], strict=True):
            yield begin + start, block[start:stop]


def whole_documents(stream: Stream, bos: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start, tokens) of blocks that end where a document ends; all together the stream."""
    held, begin = np.empty(0, dtype=np.uint16), 0
    for offset in range(0, len(stream), BLOCK_TOKENS):
        block = stream.read(offset, min(offset + BLOCK_TOKENS, len(stream)))
        held = np.concatenate([held, block])
        starts = np.flatnonzero(held == bos)
        cut = int(starts[-1]) if len(starts) else 0
        if cut:
            yield begin, held[:cut]
        held, begin = held[cut:], begin + cut
    if len(held):
        yield begin, held

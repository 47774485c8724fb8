"""Plain scoring: windows that do not overlap, each token scored once, nothing adapted.

Training validates by it, and the evaluators report it beside their own scores.
"""

from __future__ import annotations

import numpy as np
import torch

from paramgolf.bits_per_byte import Tally
from paramgolf.data.shards import ShardStream
from paramgolf.model.network import Network, Pass
from paramgolf.runtime import Runtime, send, share


def validate(
    network: Network,
    tokens: ShardStream,
    byte_counts: ShardStream,
    options: Pass,
    runtime: Runtime,
    *,
    length: int,
    batch_windows: int,
    max_tokens: int | None,
) -> Tally:
    """Score the first `max_tokens` targets (None: all), summed over processes.

    Target j of the stream is token j + 1, and its bytes are byte_counts[j + 1].
    """
    count = min(len(tokens) - 1, max_tokens or len(tokens))
    mine, nats = plain_nats(
        network,
        tokens.read(0, count + 1),
        options,
        runtime,
        length=length,
        batch_windows=batch_windows,
    )
    return Tally.of(nats, byte_counts.read(mine.start + 1, mine.stop + 1)).over(runtime)


@torch.no_grad()
def plain_nats(
    network: Network,
    tokens: np.ndarray,
    options: Pass,
    runtime: Runtime,
    *,
    length: int,
    batch_windows: int,
) -> tuple[range, np.ndarray]:
    """Return the targets of `tokens` [N + 1] that this process scored, and their nats, float64.

    Target j is token j + 1, and its context begins with its window of `length` tokens. Processes
    share whole batches of `batch_windows` windows, and the last one is padded on the right, where
    no target sees it: so all passes have one shape, and no score depends on who runs the batch.
    """
    count, size = len(tokens) - 1, batch_windows * length
    batches = share(-(-count // size), runtime)
    mine = range(min(batches.start * size, count), min(batches.stop * size, count))
    nats = np.zeros(len(mine))
    with network.frozen():
        for begin in range(mine.start, mine.stop, size):
            part = tokens[begin : begin + size + 1].astype(np.int64)
            padded = torch.from_numpy(np.pad(part, (0, size + 1 - len(part))))
            inputs, targets = (
                send(row.reshape(batch_windows, length), runtime.device)
                for row in (padded[:-1], padded[1:])
            )
            scores = network.nll(inputs, targets, options).double().cpu().numpy().ravel()
            first = begin - mine.start
            nats[first : first + size] = scores[: len(part) - 1]
    return mine, nats

"""Plain validation: non-overlapping windows, every token scored once, nothing adapted."""

from __future__ import annotations

import numpy as np
import torch

from paramgolf.bits_per_byte import Tally
from paramgolf.data.shards import ShardStream
from paramgolf.model.network import Network, Pass
from paramgolf.runtime import Runtime, share


@torch.inference_mode()
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
    """Score the first `max_tokens` targets (None: all) in windows of `length`, by all processes.

    The context of a window begins with it; the last window may be short. Target j of the stream is
    token j + 1, and its bytes are byte_counts[j + 1].
    """
    targets = min(len(tokens) - 1, max_tokens or len(tokens))
    windows = -(-targets // length)
    mine = share(windows, runtime)
    nats, counts = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    for first in range(mine.start, mine.stop, batch_windows):
        last = min(first + batch_windows, mine.stop)
        start, stop = first * length, min(last * length, targets)
        nats.append(_score(network, tokens.read(start, stop + 1), options, runtime, length))
        counts.append(byte_counts.read(start + 1, stop + 1).astype(np.int64))
    return Tally.of(np.concatenate(nats), np.concatenate(counts)).over(runtime)


def _score(
    network: Network, tokens: np.ndarray, options: Pass, runtime: Runtime, length: int
) -> np.ndarray:
    """Return the nats (float64) of each token but the first; rows are padded on the right."""
    count = len(tokens) - 1
    rows = -(-count // length)
    padded = np.zeros(rows * length + 1, dtype=np.int64)
    padded[: count + 1] = tokens
    inputs = torch.from_numpy(padded[:-1].reshape(rows, length)).to(runtime.device)
    targets = torch.from_numpy(padded[1:].reshape(rows, length)).to(runtime.device)
    nll = network.nll(inputs, targets, options)
    return nll.double().cpu().numpy().ravel()[:count]

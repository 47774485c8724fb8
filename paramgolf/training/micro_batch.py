"""`train.micro_batch_tokens: auto`: as many tokens per pass as the GPU's memory holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from paramgolf.errors import ParamGolfError
from paramgolf.model.network import Network, Pass
from paramgolf.progress import say
from paramgolf.runtime import Runtime
from paramgolf.training.config import TrainConfig

SHARE = 0.9  # of the free memory; the rest is for the optimizers' and the libraries' own
# Passes whose memory is held: the captured graphs share that of one, and beside them the next graph
# is warmed up, or a pass of rounded weights runs.
PASSES = 2
CPU_TOKENS = 16_384  # on a CPU, where more rows per pass gain nothing


def choose_micro_batch(network: Network, config: TrainConfig, runtime: Runtime) -> int:
    """Return the tokens of a micro-batch that fits, the same on all processes."""
    length = max(sizes.sequence_length for sizes in config.batch_sizes)
    counts = sequence_counts(config, length, runtime.world)
    if runtime.device.type == "cpu":
        tokens = fitting(counts, length, CPU_TOKENS)
    else:
        free, _ = torch.cuda.mem_get_info(runtime.device)
        fixed, each = _bytes_of(network, length, runtime)
        tokens = fitting(counts, length, int((SHARE * free / PASSES - fixed) / each))
    tokens = int(runtime.agree(tokens))
    if runtime.is_main:
        say(f"train: micro_batch_tokens is {tokens:,}")
    return tokens


def sequence_counts(config: TrainConfig, length: int, world: int) -> list[int]:
    """Return how many sequences of `length` tokens a micro-batch may have, in rising order.

    They are equal parts of a process's share of the smallest batch. Of packed documents a
    micro-batch is one row, and every batch is whole rows.
    """
    batches = [sizes.batch_tokens for sizes in config.batch_sizes]
    packed = config.loader == "documents"
    tokens = math.gcd(*batches) if packed else min(batches) // world
    sequences = 0 if packed and tokens % length else tokens // length
    most = sequences // world if packed else sequences
    if not most:
        raise ParamGolfError(
            "no micro-batch divides the batches among the processes",
            expected=f"{world} x {length} tokens or a multiple in each of train's batches",
            found=", ".join(map(str, batches)),
            fix="set batch_tokens to such a multiple, or lower runtime.processes",
        )
    return [count for count in range(1, most + 1) if sequences % count == 0]


def fitting(counts: Sequence[int], length: int, limit: int) -> int:
    """Return the tokens of the largest number of sequences within `limit` tokens."""
    found = [count * length for count in counts if count * length <= limit]
    if not found:
        raise ParamGolfError(
            "the smallest micro-batch does not fit in memory",
            expected=f"room for {counts[0] * length} tokens",
            found=f"room for {max(limit, 0)}",
            fix="lower train.sequence_length or model.width, or free the GPU",
        )
    return found[-1]


def _bytes_of(network: Network, length: int, runtime: Runtime) -> tuple[float, float]:
    """Return a pass's memory, bytes: what it takes in any case, and for each token.

    Measured on one and on three sequences, in the longest layer order, without compilation.
    """
    # the first pass is not counted: libraries allocate in it what they keep
    _, one, three = (_peak(network, n * length, length, runtime) for n in (1, 1, 3))
    each = (three - one) / (2 * length)
    return one - each * length, each


def _peak(network: Network, tokens: int, length: int, runtime: Runtime) -> int:
    batch = torch.zeros(tokens // length, length + 1, dtype=torch.int64, device=runtime.device)
    order = max(network.config.orders, key=len)
    torch.cuda.reset_peak_memory_stats(runtime.device)
    before = torch.cuda.memory_allocated(runtime.device)
    network.nll(batch[:, :-1], batch[:, 1:], Pass(order)).sum().backward()
    network.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated(runtime.device) - before

"""`train.micro_batch_tokens: auto`: as many tokens per pass as the GPU's memory holds."""

from __future__ import annotations

import torch

from paramgolf.errors import ParamGolfError
from paramgolf.model.network import Network, Pass
from paramgolf.progress import say
from paramgolf.runtime import Runtime
from paramgolf.training.config import TrainConfig

SHARE = 0.9  # of the free memory; the rest is for the optimizers' and the libraries' own
CPU_TOKENS = 16_384  # on a CPU, where more rows per pass gain nothing


def choose_micro_batch(network: Network, config: TrainConfig, runtime: Runtime) -> int:
    """Return the tokens of a micro-batch that fits, the same on all processes."""
    length = max(sizes.sequence_length for sizes in config.batch_sizes)
    sequences = min(sizes.batch_tokens for sizes in config.batch_sizes) // length // runtime.world
    if runtime.device.type == "cpu":
        tokens = fitting(sequences, length, CPU_TOKENS)
    else:
        free, _ = torch.cuda.mem_get_info(runtime.device)
        fixed, each = _bytes_of(network, length, runtime)
        tokens = fitting(sequences, length, int((SHARE * free - fixed) / each))
    tokens = int(runtime.agree(tokens))
    if runtime.is_main:
        say(f"train: micro_batch_tokens is {tokens:,}, {length * sequences // tokens} per step")
    return tokens


def fitting(sequences: int, length: int, limit: int) -> int:
    """Return the tokens of the largest equal part of a process's sequences within `limit`."""
    parts = (n for n in range(1, sequences + 1) if sequences % n == 0)
    found = next((sequences // n * length for n in parts if sequences // n * length <= limit), 0)
    if not found:
        raise ParamGolfError(
            "a single sequence does not fit in the GPU's memory",
            expected=f"room for {length} tokens",
            found=f"room for {max(limit, 0)}",
            fix="lower train.sequence_length or model.width, or free the GPU",
        )
    return found


def _bytes_of(network: Network, length: int, runtime: Runtime) -> tuple[float, float]:
    """Return a pass's memory, bytes: what it takes in any case, and for each token.

    Measured on one and on three sequences, in the longest layer order, without compilation.
    """
    one, three = (_peak(network, n * length, length, runtime) for n in (1, 3))
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

"""Hessians of every matrix's input, gathered in one pass over some text.

The Hessian of the squared output error with respect to a row of a matrix is twice the mean of x x^T
over the matrix's inputs x: with E the error of the matrix, |E x|^2 is the sum of e x x^T e^T over
its rows e. GPTQ needs it up to a factor.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from paramgolf.model.config import ModelConfig
from paramgolf.model.network import Network, Pass
from paramgolf.model.shapes import shapes
from paramgolf.quant.trained import FAMILIES
from paramgolf.runtime import Runtime


def empty_sums(config: ModelConfig, vocab_size: int, device: torch.device) -> dict[str, Tensor]:
    """Return zeros by family, float32 [layers, in, in]; the embedding counts as one layer."""
    known = shapes(config, vocab_size)
    sizes = {family: known[names[0]] for family, names in FAMILIES.items()}
    return {
        family: torch.zeros(1 if len(shape) == 2 else shape[0], shape[-1], shape[-1], device=device)
        for family, shape in sizes.items()
    }


@torch.no_grad()
def gather(network: Network, batches_BT: Iterable[Tensor], runtime: Runtime) -> dict[str, Tensor]:
    """Return the mean of x x^T over all tokens of all processes, float32 by family.

    Each process passes its own batches (int64 [B, T], on its device) through the network in its
    last layer order, recurrence active. A layer that runs several times in a pass adds x x^T each
    time, so its mean is over tokens, not over runs.
    """
    sums = empty_sums(network.config, network.vocab_size, runtime.device)
    tokens = torch.zeros((), dtype=torch.float64, device=runtime.device)

    def tap(family: str, index: int, x: Tensor) -> None:
        sums[family][index] += squares(x.flatten(0, -2))

    options = Pass(order=network.config.orders[-1], tap=tap)
    for batch in batches_BT:
        network.logits(batch, options)
        tokens += batch.numel()
    total = runtime.sum(tokens).item()
    return {family: runtime.sum(value).div_(total) for family, value in sums.items()}


def squares(rows: Tensor) -> Tensor:
    """Return the sum of x x^T over rows x [n, in], in float32: [in, in].

    bfloat16 would keep 8 binary digits of a sum over millions of tokens. But float32 holds what two
    of its numbers give exactly, and tensor cores add that up in float32: on an H100 ten times as
    fast as products of float32, which took most of calibrate.
    """
    if rows.is_cuda and rows.dtype == torch.bfloat16:
        return torch.mm(rows.T, rows, out_dtype=torch.float32)
    exact = rows.float()
    return exact.T @ exact

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
def gather(
    network: Network,
    batches_BT: Iterable[Tensor],
    runtime: Runtime,
    *,
    weighted_head: bool = False,
) -> dict[str, Tensor]:
    """Return the mean of x x^T over all tokens of all processes, float32 by family.

    Each process passes its own batches (int64 [B, T], on its device) through the network in its
    last layer order, recurrence active. A layer that runs several times in a pass adds x x^T each
    time, so its mean is over tokens, not over runs.

    With `weighted_head` half of the embedding's is the mean of w x x^T, brought to the same trace:
    w = 1 - sum of p^2, p the chances of the next token, is the trace of the loss's second
    derivative by the logits, diag(p) - p p^T. Where the network is sure, errors of the head cost
    nothing; but the embedding is the input, too, and rows differ in where they are likely.
    """
    sums = empty_sums(network.config, network.vocab_size, runtime.device)
    tokens = torch.zeros((), dtype=torch.float64, device=runtime.device)
    heads: list[Tensor] = []  # inputs of the head that wait for their weights
    weighted = torch.zeros_like(sums["embedding"])

    def tap(family: str, index: int, x: Tensor) -> None:
        # in float32: bfloat16 would keep 8 binary digits of a sum over millions of tokens
        rows = x.flatten(0, -2).float()
        if weighted_head and family == "embedding":
            heads.append(rows)
        sums[family][index].addmm_(rows.T, rows)

    options = Pass(order=network.config.orders[-1], tap=tap)
    for batch in batches_BT:
        logits_BTV = network.logits(batch, options)
        if weighted_head:
            rows = heads.pop()
            # text by text, for chances take as much memory as logits
            sure = torch.cat([torch.softmax(one, -1).square().sum(-1) for one in logits_BTV])
            weighted[0].addmm_(rows.T, rows * (1 - sure).unsqueeze(1))
        tokens += batch.numel()
    total = runtime.sum(tokens).item()
    means = {family: runtime.sum(value).div_(total) for family, value in sums.items()}
    if weighted_head:
        plain, weighted = means["embedding"], runtime.sum(weighted)
        means["embedding"] = (plain + weighted * (plain[0].trace() / weighted[0].trace())) / 2
    return means

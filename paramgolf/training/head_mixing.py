"""Heads of q, k and v that are learned mixes of all heads while the network trains (IHA).

    W_h <- sum over heads m of mix_hm W_m,    mix = the identity at first

Muon moves W, AdamW the mixes. In the end the mixes are multiplied into the weights, so that they
cost neither bytes nor time afterwards (arXiv 2602.21371; qlabs-eng/slowrun 69).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paramgolf.model.config import ModelConfig


def identities(config: ModelConfig, device: torch.device) -> dict[str, nn.Parameter]:
    """Return the mixes as they begin, float32 [layers, heads, heads], by the names of weights."""
    counts = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
    return {
        name: nn.Parameter(torch.eye(count, device=device).repeat(config.layers, 1, 1))
        for name, count in counts.items()
    }


def mixed_heads(mixes: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return q, k and v [layers, heads x rows, in] with their heads mixed."""
    heads = {n: weights[n].unflatten(1, (mix.shape[-1], -1)) for n, mix in mixes.items()}
    return {n: (mix @ heads[n].flatten(2)).view_as(weights[n]) for n, mix in mixes.items()}


@torch.no_grad()
def fold(mixes: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Multiply the mixes into the weights; they are the identity then, and nothing else changes."""
    for name, weight in mixed_heads(mixes, weights).items():
        weights[name].copy_(weight)
        mixes[name].copy_(torch.eye(mixes[name].shape[-1]))

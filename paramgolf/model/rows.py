"""Which rows of the stacked parameters make up the weights of a virtual layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paramgolf.model.block import Weights
from paramgolf.model.config import ModelConfig
from paramgolf.model.plan import VirtualLayer

BY_SLOT = ("attn_scale", "mlp_scale", "resid_mix", "q_gain", "norm_scale", "xsa_strength")


class Rows:
    """The stacked tensors, taken apart once per pass: the backward of unbind is one stack."""

    def __init__(self, tensors: dict[str, Tensor], config: ModelConfig) -> None:
        self._rows: dict[str, Any] = {
            name: tensor.unbind(0)
            for name, tensor in tensors.items()
            if name in Weights._fields and name != "norm_scale"
        }
        # some parameters have rows for the parallel layers alone
        self._first_parallel = config.parallel_start
        # 1 / sqrt(layer + 1): what deeper layers read is smaller, and so is what they add
        slots = torch.arange(1, len(tensors["attn_scale"]) + 1, device=tensors["qkv"].device)
        scale = slots.float().rsqrt() if config.layer_scale else torch.ones_like(slots).float()
        self._rows["norm_scale"] = scale.unbind(0)

    def of(self, virtual: VirtualLayer) -> Weights:
        """Return the weights of a virtual layer."""
        rows = {
            **dict.fromkeys(("qkv", "o", "head_gate", "hidden_gain"), virtual.layer),
            **dict.fromkeys(("up", "down"), virtual.mlp_row),
            **dict.fromkeys(BY_SLOT, virtual.slot),
        }
        if virtual.layer > 0:  # layer 0 has its values from itself
            rows["value_lambda"] = virtual.layer - 1
        if virtual.parallel:
            parallel_row = virtual.layer - self._first_parallel
            rows |= dict.fromkeys(("lane_keep", "lane_write"), virtual.layer)
            rows |= dict.fromkeys(("lane_route", "mlp_mix"), parallel_row)
        if virtual.skip_row is not None:
            rows |= dict.fromkeys(("skip_weight", "skip_gate"), virtual.skip_row)
        return Weights(
            **{name: self._rows[name][row] for name, row in rows.items() if name in self._rows}
        )

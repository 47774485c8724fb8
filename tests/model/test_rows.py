"""Each weight of a block comes from a row of the stacked parameters."""

from __future__ import annotations

import torch

from paramgolf.model.block import Weights
from paramgolf.model.plan import plan
from paramgolf.model.rows import Rows


def test_a_block_gets_every_weight_that_it_can_have(tiny_model):
    config = tiny_model(parallel="mixed")
    stacked = {name: torch.ones(config.layers, 1) for name in Weights._fields}
    found = [Rows(stacked, config).of(virtual) for virtual in plan(config, config.orders[-1])]
    for name in Weights._fields:
        assert any(getattr(weights, name) is not None for weights in found), name

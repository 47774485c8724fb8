"""What a training run leaves."""

from __future__ import annotations

import pytest
import torch
from recipe_case import moved, narrow_recipe

from paramgolf.model.network import Network, Pass
from paramgolf.training.result import without_unreached_phases


@pytest.mark.parametrize("name", ["pr1204", "pr1392", "pr1493", "pr1499"])
def test_recurrence_that_never_began_leaves_the_model(name):
    config = narrow_recipe(name).model
    network = moved(Network(config, 64, seed=1))
    kept, tensors = without_unreached_phases(config, 0, network.state_dict())
    smaller = Network(kept, 64)
    smaller.load_state_dict(tensors)
    assert kept.orders == (tuple(range(11)),)
    tokens, options = torch.arange(4, 40)[None], Pass(kept.orders[0])
    with torch.no_grad():
        assert torch.equal(smaller.logits(tokens, options), network.logits(tokens, options))

"""What a training run leaves."""

from __future__ import annotations

from paramgolf.model.network import Network
from paramgolf.training.result import without_unreached_phases


def test_recurrence_that_never_began_leaves_the_model(tiny_model):
    config = tiny_model(untied_repeats=True)
    network = Network(config, 64, seed=1)
    kept, tensors = without_unreached_phases(config, 0, network.state_dict())
    smaller = Network(kept, 64)
    smaller.load_state_dict(tensors)
    assert kept.orders == ((0, 1, 2, 3),)

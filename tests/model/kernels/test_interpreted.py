"""Networks compiled around the fused kernels, which Triton's interpreter runs on a CPU.

`make test-kernels` runs these; the MLP and the loss are the plain ones.
"""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from recipe_case import moved, narrow_recipe

from paramgolf.model.backend import REFERENCE, Backend, compiled, share_graphs
from paramgolf.model.network import Network, Pass
from paramgolf.scoring.lora_adapter import LoraTrainer

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter"
)
VOCAB = 97


@pytest.fixture
def networks(monkeypatch):
    """Make a recipe's network twice: plain, and traced and differentiated by PyTorch's compiler."""
    from paramgolf.model.kernels.heads import split_heads
    from paramgolf.model.kernels.launch import Compilations
    from paramgolf.model.kernels.mix_norm import mix_norm
    from paramgolf.model.kernels.xsa import finish_heads

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: compiler(f, backend="aot_eager", **o))
    monkeypatch.setattr(Compilations, "begin", lambda *_: None)  # there is nothing to compile
    torch._dynamo.reset()

    def make(name: str) -> tuple[Network, Network]:
        model = narrow_recipe(name).model
        plain, fused = (moved(Network(model, VOCAB, seed=1)) for _ in range(2))
        operations = REFERENCE._replace(
            mix_norm=mix_norm, split_heads=split_heads, finish_heads=finish_heads
        )
        return plain, fused.with_backend(compiled(Backend(operations=operations, copy_keys=True)))

    yield make
    torch._dynamo.reset()


def draw(rows: int, length: int) -> torch.Tensor:
    return torch.randint(2, VOCAB, (rows, length), generator=torch.Generator().manual_seed(length))


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """float32's sums in another order."""
    assert (found - expected).norm() <= 1e-4 * expected.norm() + 1e-8


@pytest.mark.parametrize("name", ["pr1204", "pr1296", "pr1493", "pr1855"])
def test_gradients_are_those_of_plain_operations(networks, name):
    plain, fused = networks(name)
    text = draw(1, 33)
    for network in (plain, fused):
        order = network.config.orders[-1]
        network.nll(text[:, :-1], text[:, 1:], Pass(order)).mean().backward()
    for parameter, p in plain.named_parameters():
        if p.grad is not None:
            assert_near(fused.get_parameter(parameter).grad, p.grad)


def test_passes_of_all_shapes_with_adapters_share_graphs(networks, monkeypatch):
    from paramgolf.model.kernels import mix_norm

    monkeypatch.setattr(mix_norm, "PROGRAMS", 8)  # as many as 32 tokens want
    config = dataclasses.replace(narrow_recipe("pr1855").eval_ttt.adapter, rank=4)
    plain, fused = networks("pr1855")
    pair = plain, fused.with_backend(share_graphs(fused.backend))
    learners = [LoraTrainer(network.requires_grad_(False), config, rows=3) for network in pair]
    graphs = set()
    for rows, length in ((3, 16), (3, 24), (2, 12)):
        text, found = draw(rows, length + 1), []
        for network, learner in zip(pair, learners, strict=True):
            learner.keep(rows)
            with network.frozen():
                part = slice(length - 8, length)
                nll = network.nll(text[:, :-1], text[:, -8:], learner.options(), part=part)
                nll.sum().backward()
            found.append([nll.detach(), *(x.grad.clone() for x in learner.adapters.parameters())])
            learner.optimizer.zero_grad(set_to_none=False)
        for x, y in zip(*found, strict=True):
            assert_near(y, x)
        graphs.add(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(graphs) == 1

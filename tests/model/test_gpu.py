"""On a GPU: attention kernels against each other, and the compiled bf16 network against fp32."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from paramgolf.data.special_tokens import BOS
from paramgolf.model.attention import Attend, Segments, attend_sdpa, find_segments
from paramgolf.model.backend import attention_for, attention_obstacles
from paramgolf.model.network import Network, Pass
from paramgolf.runtime import Runtime

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")
KERNELS = ("fa3", "fa4", "cudnn", "sdpa")


def heads(rows: int, length: int, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator(GPU).manual_seed(seed)
    x = torch.randn(rows, length, count, 64, generator=generator, device=GPU)
    return x.bfloat16().requires_grad_()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    difference = found.detach().float() - expected.detach().float()
    return float(difference.norm() / expected.detach().float().norm())


def as_in_a_block(attend: Attend, *given: torch.Tensor | Segments | None) -> torch.Tensor:
    """Call attention: to compile a function itself undoes torch.compiler.disable."""
    return attend(*given)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("rows", "length"), [(2, 2048), (3, 1000), (1, 77)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 100])
def test_attention_equals_the_reference(kernels, compiled, rows, length, packed, window):
    if obstacle := attention_obstacles(torch.cuda.get_device_capability())[kernels]:
        pytest.skip(obstacle)
    q, k, v = (heads(rows, length, n, seed) for n, seed in ((8, 0), (4, 1), (4, 2)))
    tokens = torch.randint(0, 40, (rows, length), device=GPU)
    segments = find_segments(tokens, BOS, 256) if packed else None
    if window is not None:
        segments = (segments or Segments(None, length)).within(window)
    reference = [x.detach().float().requires_grad_() for x in (q, k, v)]
    attend = attention_for(Runtime(0, 1, GPU, attention=kernels))
    if compiled:
        torch.compiler.reset()  # each case is a graph of its own, beyond the limit of a function's
        whole = kernels in ("fa3", "sdpa")  # the others are called between graphs
        call = torch.compile(as_in_a_block, fullgraph=whole, dynamic=False)
    else:
        call = as_in_a_block
    found, expected = call(attend, q, k, v, segments), attend_sdpa(*reference, segments)
    assert relative(found, expected) < 1e-2
    weight = torch.randn_like(expected)
    (found.float() * weight).sum().backward()
    (expected * weight).sum().backward()
    for x, y in zip((q, k, v), reference, strict=True):
        assert relative(x.grad, y.grad) < 2e-2


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("parallel", ["single", "lanes"])
@pytest.mark.parametrize("documents", [None, 64])
def test_the_network_on_a_gpu_equals_fp32_on_a_cpu(tiny_model, compiled, parallel, documents):
    config = dataclasses.replace(
        tiny_model(parallel=parallel, smear="token"), width=256, heads=4, kv_heads=2, mlp_hidden=512
    )
    network = Network(config, 512, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    tokens = torch.randint(1, 64, (2, 257), generator=generator)
    options = Pass(config.orders[-1], document_tokens=documents)
    expected = network.nll(tokens[:, :-1], tokens[:, 1:], options).mean()
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in network.named_parameters()}
    network.zero_grad()
    network = network.on(Runtime(0, 1, GPU, compile=compiled))
    on_gpu = tokens.to(GPU)
    found = network.nll(on_gpu[:, :-1], on_gpu[:, 1:], options).mean()
    found.backward()
    assert abs(found.item() - expected.item()) < 0.02
    for name in ("q", "k", "v", "o", "up", "down", "embedding"):
        assert relative(network.get_parameter(name).grad.cpu(), gradients[name]) < 0.1

"""The Triton kernel of the trellis against the plain search; by the interpreter without a GPU."""

import os

import pytest
import torch
from kernel_case import compile_launches, compiles

from paramgolf.quant.trellis import best_paths

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.parametrize(
    ("device", "count", "paths"),
    [
        pytest.param(
            "cpu",
            2,
            (16, 8),
            marks=pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter"),
        ),
        pytest.param("cuda", 11, (512, 256, 256), marks=pytest.mark.gpu),
        pytest.param("cuda", 3, (7, 2048, 1), marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("size", [1.0, 20.0])
def test_the_kernel_finds_the_paths_of_the_plain_search(device, count, paths, size):
    from paramgolf.quant.kernels.trellis import search

    generator = torch.Generator().manual_seed(0)
    target = size * torch.randn(count, sum(paths), generator=generator)
    cost = torch.rand(target.shape, generator=generator) + 0.1
    maximum = torch.full_like(target, 31.0)
    found = search(*(x.to(device) for x in (target, cost, maximum)), paths=paths).cpu()
    expected = best_paths(target, cost, maximum, paths)
    # sums of products in another order may decide otherwise between paths that cost the same
    ours, theirs = (cost * (target - path).square() for path in (found, expected))
    torch.testing.assert_close(ours.sum(1), theirs.sum(1), rtol=1e-5, atol=0)
    assert (found != expected).float().mean() < 0.01


@compiles
def test_the_kernel_compiles_for_a_hopper_gpu_without_one(monkeypatch):
    names = compile_launches(monkeypatch)
    from paramgolf.quant.kernels.trellis import search

    search(*torch.ones(3, 2, 24), paths=(16, 8))
    assert names == {"_search"}

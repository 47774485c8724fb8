import functools

import pytest
import torch

from paramgolf.model.cuda_graph import captured
from paramgolf.quant.trellis import best_paths


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_captured_function_returns_what_it_returns_itself(device):
    generator = torch.Generator(device).manual_seed(0)

    def inputs(steps: float) -> list[torch.Tensor]:
        target = steps * torch.randn(3, 128, generator=generator, device=device)
        weight = torch.rand(3, 128, generator=generator, device=device)
        return [target, weight, torch.full_like(target, 31.0)]

    work = functools.partial(best_paths, segment=64)
    found = captured(work, *inputs(1.0))
    for steps in (1.0, 10.0):
        given = inputs(steps)
        assert (found(*given) == work(*given)).all()

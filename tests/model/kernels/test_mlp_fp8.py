"""The MLP's kernels for FP8 against its plain form, on a GPU.

Triton's interpreter runs two of them: it does not know the language of the others.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from paramgolf.model import fp8
from paramgolf.model.operations import Mix

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
GPU = torch.device("cpu" if INTERPRETED else "cuda")
UNIT = fp8.GRADIENT_UNIT
# relative: of n in bfloat16; of what is made in FP8 of one n, and where n differs in its last bit,
# by which entries between two numbers of FP8 are rounded to the other one
OF_N, OF_ONE_N, OF_ANOTHER_N = 2e-3, 2e-2, 5e-2


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(GPU).manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, device=GPU).bfloat16()


def by_torch(x, source, target, _mode):
    """Convert an array of the interpreter's, which would drop carries, and cut bfloat16 off."""
    names = {"fp8e4nv": fp8.E4, "fp8e5": fp8.E5, "fp16": torch.float16, "bf16": torch.bfloat16}
    before, after = (names.get(dtype.name, torch.float32) for dtype in (source, target))
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    tensor = torch.from_numpy(x.view(f"i{before.itemsize}").copy()).view(before)
    found = tensor.to(after).view(integers[after.itemsize]).numpy()
    return found.view(np.dtype(f"u{after.itemsize}")).reshape(x.shape)


@pytest.fixture
def kernel(monkeypatch):
    """The MLP by kernels; where there is no GPU, of four processors."""
    from paramgolf.model.kernels import mlp_fp8

    if INTERPRETED:
        from triton.runtime import interpreter

        monkeypatch.setattr(interpreter, "_convert_float", by_torch)
        card = SimpleNamespace(multi_processor_count=4)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: card)
    return mlp_fp8


def results(function, case, lanes, coefficients, scale):
    """Return the output, n, and the gradients of lanes, up, down and coefficients, float32."""
    slope, residual, hidden = case
    width = lanes[0].shape[-1]
    up = (draw(hidden, width) / width**0.5).requires_grad_()
    down = (draw(width, hidden) / hidden**0.5).requires_grad_()
    leaves = [x.clone().requires_grad_() for x in lanes]
    learned = [up, down, *leaves]
    if coefficients is not None:
        coefficients = coefficients.clone().requires_grad_()
        learned.append(coefficients)
    mix = Mix(tuple(leaves), torch.tensor(scale, device=GPU), coefficients)
    y, n = function(mix, up, down, slope, residual=residual, gradient_unit=UNIT)
    (y.float() * draw(*y.shape, seed=7).float()).sum().backward()
    return [x.detach().float() for x in (y, n, *(leaf.grad for leaf in learned))]


def assert_near(found, expected, bound):
    for x, y in zip(found, expected, strict=True):
        assert ((x - y).norm() / y.norm()).item() < bound


@pytest.mark.gpu
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("slope", [0.5, 0.0])
@pytest.mark.parametrize(
    ("rows", "width", "hidden"), [(48, 64, 144), (4000, 128, 512), (304, 640, 528), (16, 16, 16)]
)
def test_the_same_entries_are_rounded_alike(kernel, slope, residual, rows, width, hidden):
    """Of one term and a scale of 1, n is rounded once in both forms."""
    case, lanes = (slope, residual, hidden), [draw(1, rows, width)]
    found, expected = (results(f, case, lanes, None, 1.0) for f in (kernel.mlp, fp8.mlp))
    assert_near(found[1:2], expected[1:2], OF_N)
    assert_near(found, expected, OF_ONE_N)


@pytest.mark.gpu
@pytest.mark.parametrize(("count", "mixed"), [(2, True), (2, False), (3, True)])
def test_terms_are_mixed(kernel, count, mixed):
    lanes = [draw(1, 64, 64, seed=i) for i in range(count)]
    coefficients = draw(count, 64).float() if mixed else None
    given = (0.5, True, 144), lanes, coefficients, 0.7
    found, expected = (results(f, *given) for f in (kernel.mlp, fp8.mlp))
    assert_near(found, expected, OF_ANOTHER_N)


def test_a_gradient_is_shortened_and_turned_as_torch_does_it(kernel):
    x = draw(144, 80)
    x[0, 0], x[1, 1] = 1e30, -1e30
    whole, turned = kernel.shorten(x, 0.25)
    assert torch.equal(whole.float(), fp8.rounded(x, fp8.E5, 0.25).float())
    assert torch.equal(whole.float().T, turned.float())


def test_a_product_is_added(kernel):
    units = torch.tensor(0.5, device=GPU), torch.tensor(0.25, device=GPU)
    x, w, total = draw(144, 80).to(fp8.E4), draw(272, 80).to(fp8.E4), draw(144, 272)
    expected = total.float() + 0.125 * x.float() @ w.float().T
    kernel.add_product(x, w, total, units)
    assert_near([total.float()], [expected], OF_N)


@pytest.mark.gpu
def test_gradients_of_weights_add_up_over_all_tokens_of_a_pass(kernel):
    """With partial sums as short as the tensor cores', they would lose what few tokens add."""
    case, lanes = (0.5, True, 2048), [draw(1, 98_304, 512)]
    found, expected = (results(f, case, lanes, None, 1.0) for f in (kernel.mlp, fp8.mlp))
    assert_near(found, expected, OF_ONE_N)


@pytest.mark.gpu
def test_a_compiled_sublayer_equals_one_that_is_not(kernel):
    case, lanes = (0.5, True, 512), [draw(1, 512, 256), draw(1, 512, 256, seed=1)]
    compiled = torch.compile(kernel.mlp, fullgraph=True, dynamic=False)
    coefficients = draw(2, 256).float()
    found, expected = (results(f, case, lanes, coefficients, 0.7) for f in (compiled, kernel.mlp))
    assert_near(found, expected, OF_ONE_N)

"""The MLP in FP8, its plain form: against float32, its derivative, and what is beyond a range."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from paramgolf.model import operations
from paramgolf.model.backend import Backend
from paramgolf.model.fp8 import (
    E4,
    E5,
    GRADIENT_UNIT,
    LARGEST,
    activation_unit,
    mlp,
    rounded,
    shortened,
    with_short_mlp,
)
from paramgolf.model.operations import Mix

D, M, TOKENS = 64, 144, 512
# what rounding costs, relative: an entry of e4m3 is off by 2.6 %, one of e5m2 by 5.2 %
ERRORS = {"y": 0.08, "x": 0.12, "up": 0.12, "down": 0.12}
SCALE = torch.tensor(0.5)


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def results(function, slope: float = 0.5, **options: object) -> dict[str, torch.Tensor]:
    """Return the output of an MLP without its input, and gradients of inputs and weights."""
    x, up, down = drawn(2, TOKENS, D, seed=1), drawn(M, D, seed=2) / 8, drawn(D, M, seed=3) / 12
    leaves = {"x": x, "up": up, "down": down}
    for leaf in leaves.values():
        leaf.requires_grad_()
    y, _ = function(Mix((x,), SCALE), up, down, slope, residual=False, **options)
    (y * drawn(*y.shape, seed=4)).sum().backward()
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("slope", [0.5, 0.0])
def test_only_rounding_sets_it_apart_from_the_mlp_that_is_not_short(slope):
    found = results(mlp, slope, gradient_unit=GRADIENT_UNIT)
    expected = results(operations.mlp, slope)
    for name, bound in ERRORS.items():
        assert 0 < relative(found[name], expected[name]) < bound


def test_its_derivative_minds_the_slope_of_negative_channels():
    """One that took every z as positive would be off by more than rounding."""
    found = results(mlp, gradient_unit=GRADIENT_UNIT)["x"]
    one_sided = results(lambda *t, **o: operations.mlp(*t[:-1], 0.0, **o))["x"]
    assert relative(found, one_sided) > 2 * ERRORS["x"]


def test_a_residual_is_added_and_the_norm_returned():
    x, up, down = drawn(1, 32, D, seed=1), drawn(M, D, seed=2), drawn(D, M, seed=3)
    both = drawn(2, D, seed=4)
    given = Mix((x, 2 * x), SCALE, both), up, down, 0.5
    whole, n = mlp(*given, residual=True, gradient_unit=1.0)
    part, _ = mlp(*given, residual=False, gradient_unit=1.0)
    u, expected = operations.mix_norm(given[0])
    torch.testing.assert_close(whole, u + part)
    torch.testing.assert_close(n, expected)


@pytest.mark.parametrize("dtype", [E4, E5])
def test_what_is_beyond_the_range_becomes_the_largest_number(dtype):
    x = torch.tensor([1e30, -1e30, float("inf"), 1.0])
    assert rounded(x, dtype, 1.0).float().tolist() == [
        LARGEST[dtype],
        -LARGEST[dtype],
        LARGEST[dtype],
        1.0,
    ]


def test_weights_of_any_size_keep_their_largest_entry():
    for size in (1e-6, 1.0, 1e6):
        weight = size * drawn(M, D, seed=0)
        short = shortened(weight)
        assert torch.equal(short.whole.float().T, short.turned.float())
        assert short.whole.float().abs().max() == LARGEST[E4]
        assert relative(short.whole.float() * short.unit, weight) < 0.03
    assert not shortened(torch.zeros(M, D)).whole.float().any()


def test_no_activation_is_beyond_its_unit():
    """The worst case: an input that is a row of up, the longest one."""
    up = drawn(M, D, seed=0)
    row = up[up.norm(dim=1).argmax()]
    n = SCALE * row / row.square().mean().sqrt()
    largest = (up @ n).square().max()
    assert float(largest / activation_unit(up, SCALE)) == pytest.approx(LARGEST[E4], rel=1e-5)


def test_gradients_of_any_batch_are_rounded_alike():
    """A loss that is a mean over more tokens has gradients that much smaller, to the bit."""
    x, up, down = drawn(1, 32, D, seed=1), drawn(M, D, seed=2), drawn(D, M, seed=3)
    found = []
    for tokens in (2**10, 2**30):
        short = with_short_mlp(Backend(), tokens).operations.mlp
        leaf = x.clone().requires_grad_()
        y, _ = short(Mix((leaf,), SCALE), up, down, 0.5, residual=False)
        (y.sum() / tokens).backward()
        found.append(leaf.grad * tokens)
    assert torch.equal(*found)


def test_a_backend_changes_its_mlp_alone():
    plain = Backend()
    short = with_short_mlp(plain, 1024)
    assert short.operations.mlp is with_short_mlp(plain, 1024).operations.mlp  # graphs are shared
    again = short.operations._replace(mlp=plain.operations.mlp)
    assert dataclasses.replace(short, operations=again) == plain

"""Each grid's formula, and the limits of what float16 can hold."""

import numpy as np
import pytest
import torch

from paramgolf.codec.dequantize import dequantize
from paramgolf.quant.config import PERCENTILES
from paramgolf.quant.grids import SMALLEST_SCALE, Rows, nearest, row_scales, shorten
from paramgolf.quant.row_grid import RowGrid


@pytest.fixture
def weight():
    return torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def diagonal():
    return torch.rand(2, 40, generator=torch.Generator().manual_seed(1)) + 0.1


@pytest.mark.parametrize(("bits", "maximum"), [(2, 1), (5, 15), (6, 31), (7, 63), (8, 127)])
def test_the_range_is_symmetric(bits, maximum):
    assert RowGrid(kind="absmax", bits=bits).maximum == maximum


def test_sdclip_is_clip_deviations_over_m(weight, diagonal):
    found = row_scales(weight, diagonal, RowGrid(kind="sdclip", bits=6, clip=12.85))
    expected = 12.85 * weight.double().numpy().std(axis=-1, ddof=1) / 31
    assert found.dtype == torch.float16
    np.testing.assert_allclose(found.numpy(), expected, rtol=2**-11)


def test_hessian_clip_widens_rows_that_matter(weight, diagonal):
    plain = row_scales(weight, diagonal, RowGrid(kind="sdclip", bits=6, clip=12.85))
    found = row_scales(
        weight, diagonal, RowGrid(kind="sdclip", bits=6, clip=12.85, hessian_clip=0.175)
    )
    importance = diagonal.double().numpy() / diagonal.double().numpy().mean(-1, keepdims=True)
    row = (np.abs(weight.double().numpy()) * importance[:, None]).mean(-1)
    row /= row.mean(-1, keepdims=True)
    expected = plain.double().numpy() * (1 + 0.175 * (row - 1))
    np.testing.assert_allclose(found.numpy(), expected, rtol=2**-10)


def test_hessian_clip_on_a_matrix_that_nothing_reads_is_finite(weight, diagonal):
    grid = RowGrid(kind="sdclip", bits=6, clip=12.85, hessian_clip=0.175)
    assert row_scales(weight, 0 * diagonal, grid).isfinite().all()


def test_absmax_reaches_the_largest_weight(weight, diagonal):
    found = row_scales(weight, diagonal, RowGrid(kind="absmax", bits=8))
    np.testing.assert_allclose(found.numpy() * 127, weight.abs().amax(-1).numpy(), rtol=2**-11)


@pytest.mark.parametrize("kind", ["absmax", "percentile"])
def test_no_row_reaches_less_than_the_least_reach(kind, weight, diagonal):
    """The published grids (#1019): s = clip / m, and 1 / m where that is larger."""
    weight[0, 1] *= 0.02
    free = row_scales(weight, diagonal, RowGrid(kind=kind, bits=6))
    found = row_scales(weight, diagonal, RowGrid(kind=kind, bits=6, least_reach=1.0))
    assert found[0, 1] == torch.tensor(1 / 31).half()
    assert (free[0, 1] < found[0, 1] / 10).all()
    large = free.float() * 31 > 1.1
    assert large.any()
    assert (found[large] == free[large]).all()


def test_percentile_picks_the_candidate_of_least_weighted_error(weight, diagonal):
    weight[0, 0, 3] = 8.0  # an outlier in a column that hardly matters
    diagonal[0, 3] = 1e-6
    found = row_scales(weight, diagonal, RowGrid(kind="percentile", bits=4)).numpy()
    for i in range(2):
        for j in range(3):
            row, h = weight[i, j].numpy(), diagonal[i].numpy()
            scales = [np.float16(np.quantile(np.abs(row), p) / 7) for p in PERCENTILES]
            errors = [
                (
                    h * (row - np.clip(np.round(row / np.float32(s)), -7, 7) * np.float32(s)) ** 2
                ).sum()
                for s in scales
            ]
            np.testing.assert_allclose(found[i, j], scales[int(np.argmin(errors))], rtol=2**-10)
    assert found[0, 0] < 8.0 / 7


@pytest.mark.parametrize("kind", ["sdclip", "absmax", "percentile"])
def test_tiny_and_zero_rows_get_the_smallest_normal_scale(kind):
    weight = torch.zeros(1, 2, 8)
    weight[0, 1] = 1e-9
    found = row_scales(weight, torch.ones(1, 8), RowGrid(kind=kind, bits=6, clip=12.85))
    assert found.float().tolist() == [[SMALLEST_SCALE, SMALLEST_SCALE]]
    assert (nearest(Rows(weight, found, torch.full((1, 2), 31.0))) == 0).all()


def test_a_single_column_has_a_scale():
    weight = torch.tensor([[[0.5], [-2.0]]])
    found = row_scales(weight, torch.ones(1, 1), RowGrid(kind="sdclip", bits=6, clip=12.85))
    assert (found > SMALLEST_SCALE).all()


def test_dequantizing_leaves_the_integers_alone():
    integers, scales = torch.tensor([[3.0, -31.0]]), torch.tensor([0.1], dtype=torch.float16)
    expected = integers.numpy() * np.float32(np.float16(0.1))
    np.testing.assert_array_equal(dequantize(integers, scales).numpy(), expected)
    np.testing.assert_array_equal(dequantize(integers.char(), scales).numpy(), expected)
    assert integers.tolist() == [[3.0, -31.0]]


@pytest.mark.parametrize("digits", [1, 5, 9, 10])
def test_shortened_numbers_are_the_nearest_of_so_many_digits(digits):
    """All finite float16; halves go away from 0, and what would be infinite stays the largest."""
    half = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    half = half[half.isfinite()]
    exact = half.double()
    octave = (torch.frexp(exact).exponent - 1).clamp_min(-14)  # below lie the subnormal ones
    step = 2.0 ** (octave - digits)
    nearest = (exact.abs() / step + 0.5).floor() * step
    expected = nearest.clamp_max((2 - 2.0**-digits) * 2**15).copysign(exact)
    assert torch.equal(shorten(half, digits).double(), expected)

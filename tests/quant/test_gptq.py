"""GPTQ against a column loop in float64, against rounding, and on Hessians that are degenerate."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.codec.dequantize import finer_factor
from paramgolf.errors import ParamGolfError
from paramgolf.quant.gptq import factorize, quantize_rows, row_errors, solve
from paramgolf.quant.grids import Rows, nearest, row_scales, whole_steps
from paramgolf.quant.row_grid import RowGrid


def make_hessian(generator, columns, *, tokens=None):
    """Inputs whose channels differ in size and depend on each other."""
    x = torch.randn(tokens or 4 * columns, columns, generator=generator)
    x = x * torch.rand(columns, generator=generator) + 0.5 * x.roll(1, 1) + x[:, :1]
    return x.T @ x / len(x)


def make_case(seed, *, matrices=2, rows=5, columns=12, bits=4, clip=3.0, tokens=None):
    """Return rows to be rounded and their Hessians."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(matrices, rows, columns, generator=generator)
    hessian = torch.stack([make_hessian(generator, columns, tokens=tokens) for _ in weight])
    grid = RowGrid(kind="sdclip", bits=bits, clip=clip)
    scale = row_scales(weight, hessian.diagonal(dim1=1, dim2=2), grid)
    return Rows(weight, scale, torch.full(scale.shape, float(grid.maximum))), hessian


def brute_force(rows, hessian_NCC, i, *, damping, act_order):
    """Matrix i, in float64: after each column the inverse of what is left, by elimination."""
    weight, hessian = (x[i].double().numpy().copy() for x in (rows.weight, hessian_NCC))
    steps = np.ones_like(weight) if rows.factor is None else rows.factor[i].double().numpy()
    maxima = np.floor(rows.maximum[i, 0].item() / steps)
    steps = steps * rows.scale[i].double().numpy()[:, None]
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(len(hessian))
    hessian[np.diag_indices_from(hessian)] += damping * np.diag(hessian).mean()
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    work, integers = weight[:, order], np.zeros_like(weight)
    for j in range(len(order)):
        step, most = steps[:, order[j]], maxima[:, order[j]]
        integers[:, j] = np.clip(np.round(work[:, j] / step), -most, most)
        error = (work[:, j] - integers[:, j] * step) / inverse[j, j]
        work[:, j:] -= np.outer(error, inverse[j, j:])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    result = np.zeros_like(integers)
    result[:, order] = integers
    return result


def lost(rows, integers, hessian):
    """What rounding adds to the mean squares of the outputs."""
    return row_errors(rows.weight - rows.dequantize(integers), hessian).sum()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("block_columns", [1, 5, 64])
@pytest.mark.parametrize("seed", range(3))
def test_solve_equals_the_column_loop(seed, block_columns, act_order):
    rows, hessian = make_case(seed)
    factors = factorize(hessian, damping=0.01, act_order=act_order, family="up")
    found = solve(rows, factors, block_columns=block_columns)
    for i, integers in enumerate(found):
        expected = brute_force(rows, hessian, i, damping=0.01, act_order=act_order)
        np.testing.assert_array_equal(integers.numpy(), expected)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_steps_of_columns_equal_the_column_loop(seed, act_order):
    rows, hessian = make_case(seed)
    factors = factorize(hessian, damping=0.01, act_order=act_order, family="up")
    codes = torch.randint(-8, 9, (2, 12), generator=torch.Generator().manual_seed(seed))
    rows = replace(rows, factor=finer_factor(codes, 12).expand_as(rows.weight))
    found = solve(rows, factors, block_columns=5)
    for i, integers in enumerate(found):
        expected = brute_force(rows, hessian, i, damping=0.01, act_order=act_order)
        np.testing.assert_array_equal(integers.numpy(), expected)
    best = quantize_rows(rows, hessian, factors, block_columns=5)
    assert lost(rows, best, hessian) <= lost(rows, nearest(rows), hessian) * (1 + 1e-5)


def test_finer_columns_equal_the_column_loop_on_their_own_grid():
    """Steps of a quarter with four times the reach are a grid of their own for these columns."""
    rows, hessian = make_case(4, matrices=1, rows=3)
    factors = factorize(hessian, damping=0.01, act_order=True, family="up")
    factor = torch.ones_like(rows.weight)
    factor[:, :, 4:8] = 0.25
    finer = replace(rows, factor=factor)
    found = solve(finer, factors, block_columns=5)
    quarters = replace(rows, factor=torch.full_like(rows.weight, 0.25))
    fine = replace(rows, scale=(rows.scale / 4).half(), maximum=rows.maximum * 4)
    torch.testing.assert_close(*(solve(one, factors, block_columns=5) for one in (quarters, fine)))
    assert found[:, :, :4].abs().max() <= 7
    assert 7 < found[:, :, 4:8].abs().max() <= 28
    errors = [
        lost(one, quantize_rows(one, hessian, factors, block_columns=5), hessian)
        for one in (finer, rows)
    ]
    assert errors[0] < errors[1]


def test_factors_invert_the_damped_hessian():
    _, hessian = make_case(0)
    factors = factorize(hessian, damping=0.05, act_order=True, family="o")
    for i, h in enumerate(hessian):
        order = factors.order[i]
        assert (h.diagonal()[order].diff() <= 0).all()
        upper = factors.upper[i]
        assert torch.equal(upper, upper.triu())
        damped = h[order][:, order] + 0.05 * h.diagonal().mean() * torch.eye(len(h))
        torch.testing.assert_close(upper.T @ upper @ damped, torch.eye(len(h)), atol=1e-3, rtol=0)
        assert factors.condition[i] == pytest.approx(torch.linalg.cond(damped).item(), rel=0.1)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 6),
    columns=st.integers(1, 24),
    bits=st.integers(2, 8),
    clip=st.floats(0.3, 20.0),
    tokens=st.integers(1, 64),
    act_order=st.booleans(),
)
def test_never_worse_than_rounding(seed, rows, columns, bits, clip, tokens, act_order):
    case, hessian = make_case(seed, rows=rows, columns=columns, bits=bits, clip=clip, tokens=tokens)
    factors = factorize(hessian, damping=0.01, act_order=act_order, family="q")
    found = quantize_rows(case, hessian, factors, block_columns=8)
    assert found.abs().max() <= 2 ** (bits - 1) - 1
    assert torch.equal(found, found.round())
    ours, theirs = (
        row_errors((case.weight - case.dequantize(q)).double(), hessian.double()).sum(1)
        for q in (found, nearest(case))
    )
    assert (ours <= theirs * (1 + 1e-4) + 1e-9).all()


def test_compensation_pays_where_inputs_depend_on_each_other():
    rows, hessian = make_case(1, rows=64, columns=48, bits=4)
    factors = factorize(hessian, damping=0.01, act_order=True, family="q")
    found = quantize_rows(rows, hessian, factors, block_columns=16)
    assert lost(rows, found, hessian) < 0.6 * lost(rows, nearest(rows), hessian)


def test_members_of_a_family_do_not_disturb_each_other():
    rows, hessian = make_case(2)
    factors = factorize(hessian, damping=0.01, act_order=True, family="qkv")
    together = solve(rows, factors, block_columns=4)
    some = Rows(rows.weight[:, :2], rows.scale[:, :2], rows.maximum[:, :2])
    alone = solve(some, factors, block_columns=4)
    assert torch.equal(together[:, :2], alone)


def test_dead_columns_become_zero_and_leave_the_others_alone():
    rows, hessian = make_case(3)
    hessian[0, 4], hessian[0, :, 4] = 0.0, 0.0
    factors = factorize(hessian, damping=0.01, act_order=True, family="down")
    found = quantize_rows(rows, hessian, factors, block_columns=4)
    assert factors.dead.sum() == 1
    assert (found[0, :, 4] == 0).all()
    kept = [j for j in range(12) if j != 4]
    alive = hessian[:1, kept][:, :, kept]
    reduced = factorize(alive, damping=0.01, act_order=True, family="down")
    first = Rows(rows.weight[:1, :, kept], rows.scale[:1], rows.maximum[:1])
    without = quantize_rows(first, alive, reduced, block_columns=4)
    assert torch.equal(found[:1, :, kept], without)


def test_rows_that_rounding_suits_better_have_zeros_in_dead_columns_too():
    rows, hessian = make_case(9, matrices=1, clip=0.5)
    hessian[0, 4], hessian[0, :, 4] = 0.0, 0.0
    factors = factorize(hessian, damping=0.01, act_order=True, family="down")
    found = quantize_rows(rows, hessian, factors, block_columns=4)
    assert (found != solve(rows, factors, block_columns=4)).any()
    assert (found[0, :, 4] == 0).all()


def test_no_path_of_a_trellis_costs_more_than_rounding():
    """GPTQ alone would, under a clip as hard as this one."""
    greedy_costs_more = False
    for seed in range(30):
        case, hessian = make_case(seed, matrices=1, rows=8, clip=0.5)
        sizes = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))
        rows = replace(case, paths=(4, 4), cost=(3 * sizes).exp())
        factors = factorize(hessian, damping=0.01, act_order=True, family="up")

        def costs(integers, rows=rows, hessian=hessian):
            errors = row_errors(rows.weight - rows.dequantize(integers), hessian)
            return (errors * rows.cost).view(2, 4).sum(1)

        rounded = torch.maximum(costs(nearest(rows)), costs(whole_steps(rows)))
        found = quantize_rows(rows, hessian, factors, block_columns=4)
        assert (costs(found) <= rounded).all()
        greedy_costs_more |= bool((costs(solve(rows, factors, block_columns=4)) > rounded).any())
    assert greedy_costs_more


def test_a_dead_column_of_one_damps_as_if_it_were_alive():
    _, hessian = make_case(3, matrices=1)
    hessian[0, 4], hessian[0, :, 4] = 0.0, 0.0
    given = {"damping": 0.01, "act_order": False, "family": "down"}
    ours = factorize(hessian, **given)
    theirs = factorize(hessian, **given, dead_inputs="one")
    alive = hessian[0].clone()
    alive[4, 4] = 1.0
    damped = alive + 0.01 * alive.diagonal().mean() * torch.eye(12)
    product = theirs.upper[0].T @ theirs.upper[0] @ damped
    torch.testing.assert_close(product, torch.eye(12), atol=1e-3, rtol=0)
    assert not torch.allclose(ours.upper, theirs.upper, rtol=1e-4)


def test_a_matrix_that_nothing_reads_becomes_zero():
    rows, hessian = make_case(4)
    hessian[1] = 0.0
    factors = factorize(hessian, damping=0.01, act_order=True, family="qkv")
    found = quantize_rows(rows, hessian, factors, block_columns=4)
    assert (found[1] == 0).all()
    assert found[0].abs().sum() > 0


def test_a_row_of_zeros_stays_zero():
    rows, hessian = make_case(5)
    rows.weight[0, 2] = 0.0
    grid = RowGrid(kind="sdclip", bits=4, clip=3.0)
    scale = row_scales(rows.weight, hessian.diagonal(dim1=1, dim2=2), grid)
    rows = replace(rows, scale=scale)
    factors = factorize(hessian, damping=0.01, act_order=True, family="up")
    found = quantize_rows(rows, hessian, factors, block_columns=4)
    assert (found[0, 2] == 0).all()
    assert scale.isfinite().all()


def test_a_singular_hessian_is_solved_with_damping_alone(capsys):
    rows, hessian = make_case(6, tokens=2)  # rank 2 of 12
    factors = factorize(hessian, damping=0.01, act_order=True, family="up")
    assert factors.damping == [0.01, 0.01]
    found = quantize_rows(rows, hessian, factors, block_columns=4)
    assert found.isfinite().all()
    assert capsys.readouterr().err == ""


def test_the_ladder_climbs_and_names_family_and_layer(capsys):
    _, hessian = make_case(7)
    hessian[1] -= 0.3 * hessian[1].diagonal().mean() * torch.eye(12)  # indefinite
    factors = factorize(hessian, damping=0.01, act_order=False, family="down")
    assert factors.damping[0] == 0.01
    assert factors.damping[1] in (0.1, 1.0)
    assert "down, layer 1" in capsys.readouterr().err


def test_no_damping_climbs_from_its_smallest_step():
    hessian = torch.ones(1, 6, 6)  # rank 1: singular, and not by rounding
    factors = factorize(hessian - torch.eye(6) * 1e-4, damping=0.0, act_order=False, family="o")
    assert 0 < factors.damping[0] <= 1e-2


def test_the_ladder_ends_with_family_and_layer():
    hessian = torch.stack([torch.eye(4), torch.eye(4) - 1e5 * (1 - torch.eye(4))])
    with pytest.raises(ParamGolfError, match=r"(?s)factorized.*up, layer 1.*0\.01, 0\.1, 1, 10"):
        factorize(hessian, damping=0.01, act_order=True, family="up")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_hessian_that_is_not_finite_is_named(value):
    hessian = torch.eye(4).repeat(3, 1, 1)
    hessian[2, 0, 1] = value
    with pytest.raises(ParamGolfError, match=r"(?s)not finite.*embedding, layers \[2\]"):
        factorize(hessian, damping=0.01, act_order=True, family="embedding")

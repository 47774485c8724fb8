"""Rows that make up for each other's errors, against brute force over all weights at once."""

import dataclasses

import pytest
import torch
from quantize_case import CPU, make_config, make_hessians, make_trained
from schema_case import faults_of

from paramgolf.codec.rans import next_states
from paramgolf.codec.rans_writer import follows_trellis
from paramgolf.quant.gptq import factorize
from paramgolf.quant.grids import Rows, nearest
from paramgolf.quant.quantize import quantize_model
from paramgolf.quant.rows import left_costs, solve_in_blocks
from paramgolf.quant.trained import SENSITIVITY, stacked
from paramgolf.quant.trellis import states_after


def correlated(size, seed):
    """Return a covariance of numbers that depend on each other, float64 [1, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, size, generator=generator, dtype=torch.float64)
    x = x + 2 * x[:, :1] + x.roll(1, 1)
    return (x.T @ x / 40).unsqueeze(0)


def carry_of(fisher):
    return factorize(fisher, damping=0.0, act_order=False, family="rows").upper


def rows_of(count, columns, *, paths=()):
    weight = torch.randn(1, count, columns, generator=torch.Generator().manual_seed(3))
    return Rows(
        weight, torch.full((1, count), 0.25).half(), torch.full((1, count), 31.0), paths=paths
    )


def cost(error, fisher, hessian):
    return torch.einsum("nij,njc,ncd,nid->", fisher, error.double(), hessian, error.double())


@pytest.mark.parametrize("blocks", [1, 3, 6])
def test_the_rows_that_are_left_move_to_where_the_cost_is_least(blocks):
    """Each block's target is the best of the rest under kron(G, H), given what is done."""
    fisher, hessian, rows = correlated(6, 0), correlated(5, 1), rows_of(6, 5)
    whole = torch.kron(fisher[0], hessian[0])
    targets = []

    def solve(some):
        targets.append(some.weight)
        return nearest(some)

    integers = solve_in_blocks(rows, {"up": carry_of(fisher)}, blocks, solve)
    error = (rows.weight - rows.dequantize(integers)).double().view(6, 5)
    for number, target in enumerate(targets):
        first = number * len(target[0])
        done, rest = first * 5, slice(first * 5, None)
        best = -torch.linalg.solve(whole[rest, rest], whole[rest, :done] @ error.flatten()[:done])
        expected = rows.weight[0, first:].double() - best.view(-1, 5)
        found = target[0].double()
        torch.testing.assert_close(found, expected[: len(found)], atol=1e-5, rtol=0)
    assert len(targets) == blocks


@pytest.mark.parametrize("blocks", [2, 6])
def test_what_is_left_of_a_cost_is_its_least_over_the_later_rows(blocks):
    fisher = correlated(6, 0)
    costs = left_costs(carry_of(fisher), blocks)[0].double()
    for row in range(6):
        block = row * blocks // 6
        later = slice((block + 1) * 6 // blocks, None)
        own, cross = fisher[0, row, row], fisher[0, row, later]
        least = own - cross @ torch.linalg.solve(fisher[0, later, later], cross)
        assert costs[row].item() == pytest.approx(least.item(), rel=1e-4)


def test_rows_in_blocks_cost_less_than_rows_alone():
    fisher, hessian, rows = correlated(24, 0), correlated(16, 1), rows_of(24, 16)
    costs = [
        cost(rows.weight - rows.dequantize(q), fisher, hessian)
        for q in (solve_in_blocks(rows, {"up": carry_of(fisher)}, 8, nearest), nearest(rows))
    ]
    assert costs[0] < 0.8 * costs[1]


def test_the_last_integers_tell_a_paths_state():
    halves = torch.randint(-9, 9, (3, 40), generator=torch.Generator().manual_seed(0)).numpy()
    states = 0 * halves[:, 0]
    integers = []
    for column in halves.T:
        integers.append(torch.from_numpy(2 * column + (states & 1)))
        states = next_states(states, column)
        found = states_after(torch.stack(integers, 1))
        assert found.tolist() == states.tolist()


def test_paths_go_on_from_block_to_block():
    """Two parameters of unlike heights: what is coded is one path down each."""
    rows = rows_of(36, 7, paths=(24, 12))
    carry = {"q": carry_of(correlated(24, 0)), "k": carry_of(correlated(12, 1))}
    found = solve_in_blocks(rows, carry, 4, nearest).to(torch.int8)
    for part in found.split([24, 12], 1):
        assert follows_trellis(part.numpy())
    assert (found != nearest(rows)).any()


def test_the_quantizer_uses_what_rows_have_in_common(tiny_model):
    trained = make_trained(tiny_model())
    hessians = make_hessians(trained)
    for name in ("q", "k", "v", "o", "up", "down"):
        fisher = correlated(trained.state[name].shape[1], 0).float()
        layers = len(stacked(trained.state[name]))
        hessians[name + SENSITIVITY] = fisher.expand(layers, -1, -1).clone()
    hessians["embedding" + SENSITIVITY] = torch.ones(1, trained.vocab_size)
    alone = make_config(balance=1.0, row_blocks=1, trellis=True)
    losses = []
    for config in (alone, dataclasses.replace(alone, row_blocks=4)):
        tensors, _ = quantize_model(trained, hessians, config, CPU)
        up = tensors["up.integers"] * tensors["up.scales"].unsqueeze(-1).float()
        fisher, hessian = hessians["up" + SENSITIVITY], hessians["up"]
        losses.append(cost(trained.state["up"] - up, fisher.double(), hessian.double()))
    assert losses[1] < 0.9 * losses[0]


def test_blocks_of_rows_need_measured_gradients():
    assert any("row_blocks" in str(f) for f in faults_of(make_config(row_blocks=2)))

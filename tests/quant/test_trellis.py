"""Trellis-coded rounding against all paths, its gain, and what the coder recognizes."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from quantize_case import CPU, make_config, make_hessians, make_trained, quantize_model

from paramgolf.codec.rans_model import next_states
from paramgolf.codec.rans_writer import follows_trellis
from paramgolf.quant.gptq import factorize, quantize_rows, row_errors
from paramgolf.quant.grids import Rows, nearest, whole_steps
from paramgolf.quant.report import entropy_bits
from paramgolf.quant.trellis import STATES, best_paths, transitions


def brute_force(target, weight, maximum):
    """The cheapest of all paths that a walk through the coder's trellis can take."""
    best = (np.inf, None)
    for halves in itertools.product(range(-(maximum + 1) // 2, (maximum + 1) // 2), repeat=4):
        state, cost, path = np.array(0), 0.0, []
        for half, t, w in zip(halves, target, weight, strict=True):
            path.append(2 * half + int(state & 1))
            cost += w * (t - path[-1]) ** 2
            state = next_states(state, np.array(half))
        if max(map(abs, path)) <= maximum and cost < best[0]:
            best = (cost, path)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_path_is_the_best_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    target = 3 * torch.randn(8, generator=generator)
    weight = torch.rand(8, generator=generator) + 0.1
    found = best_paths(target, weight, torch.full((8,), 5.0), (4, 4))
    for i in (0, 4):
        part = slice(i, i + 4)
        cost, _ = brute_force(target[part].tolist(), weight[part].tolist(), 5)
        ours = (weight[part] * (target[part] - found[part]).square()).sum()
        assert abs(float(ours) - cost) < 1e-4


def test_transitions_are_those_of_the_coder():
    before, residue = transitions(CPU)
    for after in range(STATES):
        for state, number in zip(before[after], residue[after], strict=True):
            half = np.array(int(number) >> 1)
            assert int(next_states(np.array(int(state)), half)) == after
            assert int(number) & 1 == int(state) & 1


def test_a_quarter_less_error_than_rounding_at_the_same_bits():
    target = 10 * torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    found = best_paths(target, torch.ones_like(target), torch.full_like(target, 127.0), (512,))
    rounded = 2 * (target / 2).round()
    assert (target - found).square().mean() < 0.76 * (target - rounded).square().mean()


@pytest.mark.parametrize("value", [0.0, 1e6, -1e6])
def test_targets_beyond_the_range_are_clipped(value):
    target = torch.full((64,), value)
    found = best_paths(target, torch.ones(64), torch.full((64,), 63.0), (64,))
    assert found.abs().max() <= 63
    assert follows_trellis(found.to(torch.int8).numpy().reshape(1, 64, 1))


@pytest.mark.parametrize("act_order", [True, False])
def test_never_worse_than_the_nearest_path(act_order):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(2, 64, 12, generator=generator)
    x = torch.randn(2, 40, 12, generator=generator)
    x = x + x[:, :, :1]
    hessian = x.mT @ x / 40
    scale = (torch.rand(2, 64, generator=generator) + 0.5).half() / 4
    maximum = torch.full((2, 64), 31.0)
    factors = factorize(hessian, damping=0.01, act_order=act_order, family="test")
    rows = Rows(weight, scale, maximum, paths=(40, 24))
    found = quantize_rows(rows, hessian, factors, block_columns=5)
    errors = [
        torch.stack([part.sum(1) for part in row_errors(error, hessian).split([40, 24], 1)])
        for error in (
            weight - q * scale.float().unsqueeze(-1)
            for q in (found, nearest(rows), whole_steps(rows))
        )
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()
    assert (errors[0] <= errors[2] * (1 + 1e-5)).all()
    assert errors[0].sum() < 0.9 * errors[1].sum()
    for part in found.to(torch.int8).split([40, 24], 1):
        assert follows_trellis(part.numpy())


def test_a_path_weighs_the_errors_of_its_rows():
    generator = torch.Generator().manual_seed(5)
    weight, x = (torch.randn(1, n, 8, generator=generator) for n in (64, 40))
    hessian, cost = x.mT @ x / 40, torch.ones(1, 64)
    cost[:, ::4] = 50.0
    factors = factorize(hessian, damping=0.01, act_order=True, family="test")
    alike = Rows(weight, torch.full((1, 64), 0.25).half(), torch.full((1, 64), 31.0), paths=(64,))
    weighed = dataclasses.replace(alike, cost=cost)

    def lost(integers):
        errors = row_errors(weight - alike.dequantize(integers), hessian)
        return float((errors * cost).sum())

    for choose in (lambda rows: quantize_rows(rows, hessian, factors, block_columns=5), nearest):
        assert lost(choose(weighed)) < 0.9 * lost(choose(alike))


@pytest.mark.parametrize("method", ["gptq", "nearest"])
def test_matrices_follow_the_trellis_and_the_embedding_does_not(tiny_model, method):
    trained = make_trained(tiny_model(width=64, mlp_hidden=128))
    hessians = make_hessians(trained)
    config = make_config(trellis=True, method=method)
    tensors, reports = quantize_model(trained, hessians, config)
    for name in ("q", "k", "v", "o", "up", "down"):
        integers = tensors[f"{name}.integers"]
        assert follows_trellis(integers.numpy())
        assert integers.abs().max() <= 63
        assert {r["bits"] for r in reports if r["name"] == name} == {7}
    for report in reports:
        if report["name"] == "up":
            integers = tensors["up.integers"][report["layer"]]
            assert report["entropy_bits"] == entropy_bits(integers) - 1
    assert not follows_trellis(tensors["embedding.integers"].numpy()[None])
    plain = quantize_model(trained, hessians, make_config(method=method))[1]
    errors = [sum(r["error_trace"] for r in some if r["name"] == "up") for some in (reports, plain)]
    assert errors[0] < 0.9 * errors[1]

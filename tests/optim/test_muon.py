"""Muon against its formula, one matrix at a time; the sharded update against the whole one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from process_case import ALONE, joined, run_ranks
from torch import nn

from paramgolf.optim.muon import Muon, Variant
from paramgolf.optim.orthogonal import NEWTON_SCHULZ, coefficients, orthogonalize
from paramgolf.runtime import Runtime

SHAPES = {"q": (3, 8, 8), "k": (3, 4, 8), "up": (3, 16, 8), "down": (3, 8, 16), "one": (8, 4)}


def nothing() -> None:
    """What there is to do while updates are gathered."""


def make() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    parameters = {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in SHAPES.items()}
    for p in parameters.values():
        p.grad = torch.randn(p.shape, generator=generator)
    return parameters


def muon_of(parameters: dict[str, nn.Parameter], **options: object) -> Muon:
    """Return Muon by the Newton-Schulz iteration, in one process."""
    options = {"normalize_rows": False, **options}
    return Muon(parameters, coefficients("newton_schulz", 5), ALONE, **options)


def take_step(muon: Muon, **rates: object) -> None:
    """Take a step, which moves no parameter unless it is told its rates."""
    muon.step(**{"lr": 0.0, "decay": 0.0, "momentum": 0.5, "during_gather": nothing, **rates})


@pytest.mark.parametrize(("normalize_rows", "floor"), [(False, 0.0), (True, 0.0), (True, 0.5)])
def test_update_is_the_formula(normalize_rows, floor):
    parameters = make()
    muon = muon_of(parameters, normalize_rows=normalize_rows, row_floor=floor)
    expected = {}
    for name, p in parameters.items():
        rows = []
        shape = (-1, *p.shape[-2:])
        for matrix, grad in zip(p.detach().view(shape), p.grad.view(shape), strict=True):
            N = grad + 0.9 * grad  # first step: the buffer is the gradient
            if normalize_rows:
                N = N / (N.square().sum(1, keepdim=True) + floor).sqrt()
            X = N / N.norm()
            X = X.T if X.shape[0] > X.shape[1] else X
            a, b, c = NEWTON_SCHULZ
            for _ in range(5):
                A = X @ X.T
                X = a * X + (b * A + c * A @ A) @ X
            X = X.T if matrix.shape[0] > matrix.shape[1] else X
            scale = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
            rows.append(matrix * (1 - 0.02 * 0.1) - 0.02 * scale * X)
        expected[name] = torch.stack(rows).view(p.shape)
    take_step(muon, lr=0.02, decay=0.1, momentum=0.9)
    for name, p in parameters.items():
        torch.testing.assert_close(p.detach(), expected[name], atol=1e-5, rtol=1e-5)


def test_momentum_gathers_gradients():
    parameters = make()
    first = {name: p.grad.clone() for name, p in parameters.items()}
    muon = muon_of(parameters)
    take_step(muon)
    take_step(muon)
    for name, buffer in muon.momentum.items():
        torch.testing.assert_close(buffer.view(first[name].shape), 1.5 * first[name])


def test_cautious_decay_spares_what_the_update_makes_larger():
    moved, decayed = make(), make()
    for parameters, decay in ((moved, 0.0), (decayed, 0.5)):
        muon = muon_of(parameters, normalize_rows=True, variant=Variant(cautious=True))
        take_step(muon, lr=0.1, decay=decay, momentum=0.9)
    for name, before in make().items():
        shrinks = (before - moved[name]) * before > 0
        expected = moved[name] - 0.1 * 0.5 * before * shrinks
        torch.testing.assert_close(decayed[name], expected)
        assert 0.2 < shrinks.float().mean() < 0.8


def test_heads_are_orthogonalized_apart():
    """As if each block of rows were a parameter of its own."""
    whole = make()
    parted = {
        f"{name}{i}": nn.Parameter(whole[name].detach()[:, 2 * i : 2 * i + 2].clone())
        for name, i in (("k", 0), ("k", 1), ("q", 0), ("q", 1), ("q", 2), ("q", 3))
    }
    for name, p in parted.items():
        i = int(name[1:])
        p.grad = whole[name[0]].grad[:, 2 * i : 2 * i + 2].clone()
    for parameters, rows in ((whole, {"k": 2, "q": 2}), (parted, {})):
        muon = muon_of(parameters, normalize_rows=True, variant=Variant(rows=rows))
        for _ in range(2):
            take_step(muon, lr=0.1, decay=0.1, momentum=0.9)
    for name, p in parted.items():
        i = int(name[1:])
        torch.testing.assert_close(whole[name[0]][:, 2 * i : 2 * i + 2], p)


def test_momentum_in_bfloat16_is_rounded():
    parameters = make()
    muon = muon_of(parameters, dtype=torch.bfloat16)
    take_step(muon)
    assert torch.equal(muon.momentum["q"], parameters["q"].grad.bfloat16())


def test_a_parameter_without_a_gradient_is_left_alone():
    parameters = make()
    parameters["k"].grad = None
    before = {name: p.detach().clone() for name, p in parameters.items()}
    muon = muon_of(parameters)
    take_step(muon, lr=0.1, decay=0.5, momentum=0.5)
    assert [name for name, p in parameters.items() if torch.equal(p, before[name])] == ["k"]


@pytest.mark.parametrize("iterations", [5, 9])  # Polar Express has five polynomials
@pytest.mark.parametrize("name", ["newton_schulz", "polar_express"])
def test_singular_values_move_near_one(name, iterations):
    G = torch.randn(4, 8, 32, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(G, coefficients(name, iterations)))
    assert values.min() > 0.5
    assert values.max() < 1.4


def after_three_steps(runtime: Runtime) -> dict[str, torch.Tensor]:
    parameters = make()
    muon = Muon(parameters, coefficients("polar_express", 5), runtime, normalize_rows=True)
    for _ in range(3):
        take_step(muon, lr=0.02, decay=0.1, momentum=0.9)
    return {name: p.detach() for name, p in parameters.items()}


def _run_rank(rank: int, folder: Path) -> None:
    with joined(rank, folder) as runtime:
        torch.save(after_three_steps(runtime), folder / f"{rank}.pt")


def test_two_processes_equal_one(tmp_path):
    run_ranks(_run_rank, tmp_path)
    expected = after_three_steps(ALONE)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_updates_are_gathered_while_there_is_other_work(monkeypatch):
    """All groups are on their way, the largest first, before anything is waited for."""
    events = []

    class Gathering:
        def wait(self):
            events.append("wait")

    def gather(whole, mine, *, async_op):
        assert async_op
        events.append(tuple(mine.shape[1:]))
        return Gathering()

    monkeypatch.setattr("paramgolf.optim.muon.all_gather", gather)
    runtime = Runtime(1, 2, torch.device("cpu"))
    muon = Muon(make(), coefficients("newton_schulz", 5), runtime, normalize_rows=True)
    muon.step(lr=0.0, decay=0.0, momentum=0.9, during_gather=lambda: events.append("other work"))
    assert events == [(8, 16), (8, 8), (4, 8), "other work", "wait", "wait", "wait"]

"""Steps of columns: their codes, what they equalize, and what that is worth."""

import dataclasses

import pytest
import torch
from quantize_case import CPU, make_config, make_hessians, quantize_model
from schema_case import faults_of

from paramgolf.codec.dequantize import eighths, finer_factor
from paramgolf.quant.quantize import prepare
from paramgolf.quant.report import stored_bits
from paramgolf.quant.scales import choose_precisions, column_steps


@pytest.fixture
def hessians(trained):
    """Inputs of unlike size, which depend on each other."""
    found = make_hessians(trained)
    for stack in found.values():
        sizes = torch.randn(stack.shape[:2], generator=torch.Generator().manual_seed(2)).exp()
        stack *= sizes.unsqueeze(1) * sizes.unsqueeze(2)
    return found


def test_eighths_undo_their_factors():
    codes = torch.arange(-56, 57, dtype=torch.int8).view(1, -1)
    factors = finer_factor(codes, codes.shape[1])
    assert torch.equal(eighths(factors.squeeze(1)), codes)
    assert torch.equal(
        finer_factor(torch.tensor([[8, -8, 20]]), 3)[0, 0], torch.tensor([0.5, 2, 0.1875])
    )
    between = torch.linspace(-6, 6, 997).exp2().view(1, -1)
    nearest = finer_factor(eighths(between), between.shape[1]).squeeze(1)
    assert ((nearest / between).log2().abs() < 0.09).all()


@pytest.mark.parametrize("act_order", [True, False])
def test_what_is_left_of_errors_is_the_same_for_all_columns(trained, hessians, act_order):
    config = make_config(column_steps=True, act_order=act_order)
    families = prepare(trained, hessians, config, CPU)
    finer = column_steps(families)
    for family in families:
        for name, weight in family.weights.items():
            left = finer_factor(finer[name], weight.shape[2]).squeeze(1) / family.pivot
            spread = left.log2() - left.log2().mean(1, keepdim=True)
            assert spread.abs().max() < 0.1
            assert family.pivot.log2().std() > 0.3  # or the steps would be all the same


def test_the_error_falls_by_the_ratio_of_means_at_the_same_bits(trained, hessians):
    """AM / GM of 1 / U_jj^2, with the mean logarithm of all steps unchanged."""
    plain = make_config(matrix_bits=8, attention_clip=25.0, mlp_clip=25.0)
    stepped = dataclasses.replace(plain, column_steps=True)
    families = prepare(trained, hessians, plain, CPU)
    found = [quantize_model(trained, hessians, c) for c in (plain, stepped)]
    errors = [sum(r["error_trace"] for r in reports if r["name"] == "up") for _, reports in found]
    factor = finer_factor(found[1][0]["up.finer"], trained.state["up"].shape[2])
    assert abs(float(factor.log2().mean())) < 0.02
    left = next(f for f in families if f.name == "up").pivot.double().pow(-2)
    expected = (left.log2().mean(1).exp2().sum() / left.mean(1).sum()).item()
    assert expected < 0.8
    assert errors[1] / errors[0] == pytest.approx(expected, rel=0.2)
    assert stored_bits(*found[1])["up"] == 8


def test_balance_counts_the_steps_of_columns(trained, hessians):
    """Rows' costs are those of the steps that their columns have."""
    clips = dict.fromkeys(("attention_clip", "mlp_clip", "embedding_clip"), 80.0)
    config = make_config(balance=1.0, column_steps=True, matrix_bits=8, **clips)
    for name, weight in trained.state.items():
        if f"{name}.sensitivity" not in hessians and weight.dim() > 1:
            hessians[f"{name}.sensitivity"] = torch.ones(
                weight.view(-1, *weight.shape[-2:]).shape[:2]
            )
    families = prepare(trained, hessians, config, CPU)
    precisions = choose_precisions(families, trained.model, config)
    costs = []
    for family in families:
        for name, weight in family.weights.items():
            precision = precisions[name]
            factor = finer_factor(precision.finer, weight.shape[2]).double()
            left = (factor / family.pivot.double().unsqueeze(1)).square().mean(2)
            costs.append((left * precision.scale.double().square()).flatten())
    logs = torch.cat(costs).log2()
    assert logs.std() < 0.2


def test_column_steps_need_gptq_and_no_finer_groups():
    config = make_config()
    for changes in ({"finer_groups": 1}, {"method": "nearest"}):
        faults = faults_of(dataclasses.replace(config, column_steps=True, **changes))
        assert any("column_steps" in str(fault) for fault in faults)

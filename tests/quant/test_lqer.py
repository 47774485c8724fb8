"""LQER: the packed correction against a plain singular value decomposition, and what it gains."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from quantize_case import make_config, quantize_model

from paramgolf.codec.container import dequantized
from paramgolf.codec.dequantize import low_rank
from paramgolf.quant.lqer import factorize_error


def low_rank_matrix(seed, rows=24, columns=32, rank=2):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator)
    return left @ torch.randn(rank, columns, generator=generator)


@pytest.mark.parametrize("seed", range(3))
def test_codes_stand_for_the_leading_components(seed):
    error = low_rank_matrix(seed)
    codes = factorize_error(error, make_config(low_rank=2, low_rank_group=16))
    assert {name: tuple(t.shape) for name, t in codes.items()} == {
        "left": (24, 2),
        "left_scales": (2,),
        "right": (2, 32),
        "right_scales": (2, 2),
    }
    assert codes["left"].dtype == codes["right"].dtype == torch.int8
    assert -2 <= codes["left"].min() <= codes["left"].max() <= 1
    assert -8 <= codes["right"].min() <= codes["right"].max() <= 7
    vectors, sizes, others = np.linalg.svd(error.double().numpy())
    for i in range(2):
        left = codes["left"][:, i].double() * codes["left_scales"][i]
        right = codes["right"][i].double() * codes["right_scales"][i].repeat_interleave(16)
        # 2 and 4 bits: the direction stays, the sign of a component is free
        assert abs(np.dot(left.numpy(), vectors[:, i])) > 0.8 * float(left.norm())
        assert abs(np.dot(right.numpy(), others[i])) > 0.98 * float(right.norm())
        limit = np.abs(vectors[:, i] * sizes[i]).max() / 1.5
        assert codes["left_scales"][i].item() == pytest.approx(limit, rel=1e-3)


def test_a_group_that_does_not_divide_is_the_whole_row():
    codes = factorize_error(low_rank_matrix(0), make_config(low_rank_group=7, low_rank=2))
    assert codes["right_scales"].shape == (2, 1)


def test_the_left_factor_may_have_one_scale():
    config = make_config(low_rank=2, low_rank_group=16, low_rank_left_scales="matrix")
    error = low_rank_matrix(0)
    codes, apart = (
        factorize_error(error, c) for c in (config, make_config(low_rank=2, low_rank_group=16))
    )
    assert codes["left_scales"].tolist() == [apart["left_scales"].max().item()] * 2


def test_an_error_of_zeros_stays_zero():
    codes = factorize_error(torch.zeros(4, 8), make_config())
    assert not low_rank(**codes).any()
    assert all(t.isfinite().all() and (t > 0).all() for n, t in codes.items() if "scales" in n)


def test_the_worst_matrices_are_corrected(trained, hessians):
    config = make_config(matrix_bits=3, mlp_clip=3.0, attention_clip=3.0)
    before, old = quantize_model(trained, hessians, config)
    config = replace(config, low_rank_matrices=3, low_rank=8)
    after, new = quantize_model(trained, hessians, config)
    corrected = {(r["name"], r["layer"]) for r in new if r["low_rank"]}
    stack = {"embedding": trained.state["embedding"].unsqueeze(0)}
    sizes = {}
    for report in old:
        name, layer = report["name"], report["layer"]
        error = (stack.get(name, trained.state[name]) - dequantized(before)[name])[layer]
        sizes[name, layer] = error.norm().item()
    assert corrected == set(sorted(sizes, key=lambda key: -sizes[key])[:3])
    for one, other in zip(old, new, strict=True):
        if other["low_rank"]:
            assert other["low_rank"] == 8
            assert other["relative_error"] < one["relative_error"]
        else:
            assert other["relative_error"] == one["relative_error"]
    name, layer = sorted(corrected)[0]
    weight, found = trained.state[name][layer], dequantized(after)[name][layer]
    report = next(r for r in new if (r["name"], r["layer"]) == (name, layer))
    expected = ((weight - found).norm() / weight.norm()).item()
    assert report["relative_error"] == pytest.approx(expected, rel=1e-4)


def test_a_correction_that_would_not_help_is_left_out(trained, hessians):
    config = make_config(matrix_bits=8, attention_clip=4.0, mlp_clip=4.0)
    plain, old = quantize_model(trained, hessians, config)
    config = replace(config, low_rank_matrices=25)
    tensors, reports = quantize_model(trained, hessians, config)
    assert all(
        a["relative_error"] <= b["relative_error"] for a, b in zip(reports, old, strict=True)
    )
    kept = {name for name in tensors if name.endswith(".left")}
    assert kept == {f"{r['name']}.{r['layer']}.left" for r in reports if r["low_rank"]}
    assert plain.keys() <= tensors.keys()
    _, everywhere = quantize_model(trained, hessians, replace(config, low_rank_always=True))
    assert all(report["low_rank"] for report in everywhere)

"""Bits by Hessian trace, finer groups of columns, and parameters rounded without a Hessian."""

from dataclasses import replace

import pytest
import torch
from quantize_case import CPU, make_config, make_hessians, make_trained, quantize_model

from paramgolf.codec.container import dequantized
from paramgolf.quant.allocation import layer_bits, repeated_rows
from paramgolf.quant.quantize import prepare
from paramgolf.quant.report import stored_bits
from paramgolf.quant.scales import finer_columns
from paramgolf.quant.trained import FAMILIES

BLOCKS = ("q", "k", "v", "o", "up", "down")


def traces_of(hessians):
    """Traces by parameter, as layer_bits takes them."""
    return {
        name: hessians[family].diagonal(dim1=1, dim2=2).sum(1).tolist()
        for family, names in FAMILIES.items()
        for name in names
    }


def high_matrices(bits, high=6):
    return {(n, i) for n in BLOCKS for i, width in enumerate(bits[n]) if width == high}


@pytest.mark.parametrize("count", [0, 1, 7, 24, 100])
def test_the_largest_traces_get_the_high_bits(trained, hessians, count):
    found = traces_of(hessians)
    bits = layer_bits(found, trained.model, make_config(high_bits_matrices=count))
    traces = {(name, layer): trace for name in BLOCKS for layer, trace in enumerate(found[name])}
    high = high_matrices(bits)
    assert len(high) == min(count, len(traces))
    low = traces.keys() - high
    assert not high or not low or min(traces[m] for m in high) >= max(traces[m] for m in low)


def test_without_a_number_all_are_high(trained, hessians):
    bits = layer_bits(traces_of(hessians), trained.model, make_config(matrix_bits=7))
    assert high_matrices(bits, 7) == {(name, layer) for name in BLOCKS for layer in range(4)}


def test_matrices_of_repeated_layers_come_first_and_count(trained, hessians):
    """The order is 0 1 2 1 2 3: twelve matrices belong to layers 1 and 2."""
    traces = traces_of(hessians)
    for count in (5, 12, 15):
        config = make_config(high_bits_matrices=count, recurrent_high=True)
        high = high_matrices(layer_bits(traces, trained.model, config))
        assert len(high) == count
        repeated = {matrix for matrix in high if matrix[1] in (1, 2)}
        assert len(repeated) == min(count, 12)


def test_matrices_of_the_mlp_may_have_bits_of_their_own(trained, hessians):
    tensors, reports = quantize_model(trained, hessians, make_config(mlp_bits=4))
    assert {r["bits"] for r in reports if r["name"] in ("up", "down")} == {4}
    assert {r["bits"] for r in reports if r["name"] in ("q", "k", "v", "o")} == {6}
    assert tensors["up.integers"].abs().max() <= 7 < tensors["q.integers"].abs().max()


def test_an_embedding_without_bits_is_float16(trained, hessians):
    tensors, reports = quantize_model(trained, hessians, make_config(embedding_bits=None))
    assert torch.equal(tensors["embedding"], trained.state["embedding"].half())
    assert "embedding" not in {report["name"] for report in reports}
    assert "embedding" not in stored_bits(tensors, reports)


def test_mlps_of_untied_repeats_are_repeated_rows(tiny_model):
    model = tiny_model(untied_repeats=True)
    rows = repeated_rows(model)
    assert {1, 2, 4, 5} <= rows
    assert not {0, 3} & rows
    trained = make_trained(model)
    config = make_config(high_bits_matrices=16, recurrent_high=True)
    bits = layer_bits(traces_of(make_hessians(trained)), model, config)
    assert bits["up"] == bits["down"] == (5, 6, 6, 5, 6, 6)


def test_mixed_bits_reach_the_integers_and_the_report(trained, hessians):
    hessians["up"][2] *= 100
    config = make_config(high_bits_matrices=1, low_bits=3, grid="absmax", method="nearest")
    tensors, reports = quantize_model(trained, hessians, config)
    assert tensors["up.integers"].abs().amax((1, 2)).tolist() == [3, 3, 31, 3]
    assert tensors["q.integers"].abs().amax((1, 2)).tolist() == [3, 3, 3, 3]
    assert [r["bits"] for r in reports if r["name"] == "up"] == [3, 3, 6, 3]
    bits = stored_bits(tensors, reports)
    assert (bits["up"], bits["q"], bits["embedding"]) == (6, 3, 8)


def test_finer_groups_are_the_most_salient(trained, hessians):
    bits = layer_bits(traces_of(hessians), trained.model, make_config()) | {"embedding": (8,)}
    families = prepare(trained, hessians, make_config(), CPU)
    chosen = finer_columns(families, bits, make_config(finer_groups=3))
    scores = {}
    for family, names in FAMILIES.items():
        for name in names if family != "embedding" else ():  # 8 bits leave no room
            for layer, matrix in enumerate(trained.state[name]):
                for group in range(matrix.shape[1] // 16):
                    scores[name, layer, group] = sum(
                        hessians[family][layer][j, j].sqrt() * matrix[:, j].abs().mean()
                        for j in range(16 * group, 16 * group + 16)
                    )
    expected = set(sorted(scores, key=lambda key: -scores[key])[:3])
    found = {(name, *place) for name, t in chosen.items() for place in t.nonzero().tolist()}
    assert found == expected
    assert all(set(t.unique().tolist()) <= {0, 16} for t in chosen.values())


@pytest.mark.parametrize("method", ["gptq", "nearest"])
def test_finer_groups_bring_the_weights_nearer(trained, hessians, method):
    plain, before = quantize_model(trained, hessians, make_config(method=method))
    config = make_config(method=method, finer_groups=2)
    tensors, after = quantize_model(trained, hessians, config)
    groups = {name.removesuffix(".finer"): t for name, t in tensors.items() if "finer" in name}
    assert sum(int((t > 0).sum()) for t in groups.values()) == 2
    for name, halvings in groups.items():
        for layer, group in halvings.nonzero().tolist():
            columns = slice(16 * group, 16 * group + 16)
            part = trained.state[name][layer][:, columns]
            fine, coarse = (
                (dequantized(t)[name][layer][:, columns] - part).norm() for t in (tensors, plain)
            )
            assert fine < 0.5 * coarse
            most, least = (
                t[f"{name}.integers"][layer][:, columns].abs().max() for t in (tensors, plain)
            )
            assert most >= 3 * least
        assert stored_bits(tensors, after)[name] == 8
    assert sum(r["error_trace"] for r in after) < sum(r["error_trace"] for r in before)
    error = trained.state["up"] - dequantized(tensors)["up"]
    found = [r["relative_error"] for r in after if r["name"] == "up"]
    expected = error.flatten(1).norm(dim=1) / trained.state["up"].flatten(1).norm(dim=1)
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=0)


def test_groups_that_do_not_divide_the_columns_are_left_alone(trained, hessians):
    config = make_config(finer_groups=5, group_columns=48)
    assert not any("finer" in name for name in quantize_model(trained, hessians, config)[0])


def test_the_embedding_alone_can_be_rounded(trained, hessians):
    mixed, _ = quantize_model(trained, hessians, make_config(embedding_method="nearest"))
    rounded, _ = quantize_model(trained, hessians, make_config(method="nearest"))
    solved, _ = quantize_model(trained, hessians, make_config())
    assert torch.equal(mixed["embedding.integers"], rounded["embedding.integers"])
    assert not torch.equal(mixed["embedding.integers"], solved["embedding.integers"])
    assert torch.equal(mixed["down.integers"], solved["down.integers"])


def test_gates_and_tables_are_rounded_by_their_rows(tiny_model):
    model = tiny_model(head_gate="dense", bigram_buckets=32, bigram_dim=16)
    trained = make_trained(model)
    config = make_config(gate_bits=8, table_bits=6, bigram_proj_bits=6, grid="absmax")
    tensors, reports = quantize_model(trained, make_hessians(trained), config)
    for name, most in (("head_gate", 127), ("bigram_table", 31), ("bigram_proj", 31)):
        weight, integers = trained.state[name], tensors[f"{name}.integers"]
        assert integers.shape == weight.shape
        assert (integers.abs().amax(-1) == most).all()
        scale = tensors[f"{name}.scales"].float().unsqueeze(-1)
        assert ((dequantized(tensors)[name] - weight).abs() <= 0.51 * scale).all()
    assert stored_bits(tensors, reports)["head_gate"] == 8
    reaches = {"table_least_reach": 30.0, "least_reach": 20.0}
    floored = quantize_model(trained, make_hessians(trained), replace(config, **reaches))[0]
    for name, reach in (("bigram_table", 30), ("bigram_proj", 20)):
        assert (floored[f"{name}.scales"] == torch.tensor(reach / 31).half()).all()
    assert torch.equal(floored["head_gate.scales"], tensors["head_gate.scales"])
    plain, _ = quantize_model(trained, make_hessians(trained), make_config())
    assert "head_gate" in plain
    assert "bigram_table" in plain

"""What an estimate of bytes expects: traces before calibration, deviations before training."""

import dataclasses
import json

import pytest
import torch
from package_case import frozen
from process_case import ALONE
from recipe_case import recipe

from paramgolf.estimate import size
from paramgolf.estimate.allocation import LEARNED, expected_bits, expected_traces, other_allocations
from paramgolf.estimate.summary import estimate
from paramgolf.model.network import Network
from paramgolf.model.shapes import MATRICES
from paramgolf.packing.code import pack_code
from paramgolf.quant.allocation import layer_bits
from paramgolf.quant.hessian import gather

VOCAB = 64
FORMS = [
    {},
    {"parallel": "routed", "untied_repeats": True, "virtual_scalars": True}
    | {"first_attention": False},
    {"parallel": "merge", "layer_scale": False},
]


@pytest.fixture(params=FORMS, ids=["single", "routed", "merge"])
def model(request, tiny_model):
    return tiny_model(**request.param)


@pytest.fixture
def hessians(model):
    """The Hessians of a network whose every matrix is random."""
    network = Network(model, VOCAB, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in MATRICES:
            matrix = network.get_parameter(name)
            matrix.copy_(0.2 * torch.randn(matrix.shape, generator=generator))
    return gather(network, [torch.randint(2, VOCAB, (4, 32), generator=generator)], ALONE)


def test_traces_of_normed_inputs_are_known_beforehand(model, hessians):
    expected = expected_traces(model, learned={})
    for family, name in (("qkv", "q"), ("qkv", "v"), ("up", "up")):
        traces = hessians[family].diagonal(dim1=1, dim2=2).sum(1).tolist()
        assert traces == pytest.approx(expected[name], rel=1e-3)


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_choice_is_that_of_quantize_where_the_traces_are(model, recurrent):
    quantize = dataclasses.replace(
        recipe("base").quantize, high_bits_matrices=7, low_bits=5, recurrent_high=recurrent
    )
    bits = expected_bits(model, quantize)
    chosen = layer_bits(expected_traces(model, LEARNED), model, quantize)
    if not model.first_attention:
        chosen |= {name: chosen[name][1:] for name in "qkvo"}
    assert bits == chosen
    assert sum(of_layers.count(6) for of_layers in bits.values()) == 7


def test_every_matrix_has_all_bits_unless_some_are_chosen(tiny_model):
    quantize, model = recipe("base").quantize, tiny_model()
    assert {
        width for of_layers in expected_bits(model, quantize).values() for width in of_layers
    } == {6}
    some = dataclasses.replace(quantize, high_bits_matrices=6)
    found = [*other_allocations(model, some)]
    assert len({json.dumps(bits) for bits in found}) > 1
    assert all(sum(w.count(6) for w in bits.values()) == 6 for bits in found)


@pytest.mark.parametrize(("name", "published"), [("pr1204", 15_940_000), ("pr1296", 15_995_000)])
def test_published_artifacts_are_within_the_tolerance(name, published):
    params = recipe(name)
    code = pack_code(frozen(params))
    found = estimate(params, code_bytes=len(code.content), device="H100", count=8)["artifact"]
    assert abs(found["bytes_total"] - published) < found["tolerance_bytes"] < 0.08 * published


def test_rows_need_no_deviation_where_nothing_is_floored(tiny_model):
    params = recipe("pr1493")
    expected = size.ModelBytes(
        model=params.model,
        vocab_size=8192,
        quantize=params.quantize,
        package=params.package,
        deviations=size.trained_deviations(params.model, 8192, params.train),
    )
    assert expected.deviation_uncertainty() == 0
    assert expected.parts() == dataclasses.replace(expected, deviations={}).parts()
    without = dataclasses.replace(params.train, matrix_decay=0.0)
    assert size.trained_deviations(params.model, 8192, without).keys() == {
        "embedding",
        "bigram_table",
        "value_table",
    }

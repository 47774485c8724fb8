"""Sensitivities against brute force, and the steps that follow from them."""

import dataclasses

import numpy as np
import pytest
import torch
from process_case import ALONE
from quantize_case import CPU, VOCAB, divergence, make_config, quantize_model
from schema_case import faults_of

from paramgolf.errors import ParamGolfError
from paramgolf.quant.calibrate import load_network
from paramgolf.quant.gptq import row_errors
from paramgolf.quant.hessian import gather
from paramgolf.quant.quantize import prepare
from paramgolf.quant.scales import MOST_CHANGE, balanced_scales
from paramgolf.quant.sensitivity import measure
from paramgolf.quant.trained import FAMILIES, SENSITIVITY, stacked

NAMES = [name for names in FAMILIES.values() for name in names]


def pairs(count, length=16):
    generator = torch.Generator().manual_seed(4)
    for _ in range(count):
        text = torch.randint(VOCAB, (1, length), generator=generator)
        yield text, torch.rand(length, 1, dtype=torch.float64, generator=generator)


def sensitivities(trained, hessians, count=200):
    network = load_network(trained, "trained")
    return network, measure(network, pairs(count), hessians, ALONE)


def test_each_row_has_a_sensitivity_of_at_least_zero(trained, hessians):
    _, found = sensitivities(trained, hessians, count=3)
    assert found.keys() == {name + SENSITIVITY for name in NAMES}
    for name in NAMES:
        assert found[name + SENSITIVITY].shape == stacked(trained.state[name]).shape[:2]
        assert found[name + SENSITIVITY].dtype == torch.float32
        assert (found[name + SENSITIVITY] >= 0).all()


def test_ranks_share_the_texts(trained, hessians):
    """Sums over texts, so that two halves make the whole."""
    network, whole = sensitivities(trained, hessians, count=4)
    rows = list(pairs(4))
    halves = [measure(network, rows[i : i + 2], hessians, ALONE) for i in (0, 2)]
    for name in NAMES:
        mean = (halves[0][name + SENSITIVITY] + halves[1][name + SENSITIVITY]) / 2
        if name != "embedding":
            torch.testing.assert_close(mean, whole[name + SENSITIVITY], rtol=1e-4, atol=1e-12)


def test_the_cost_of_small_errors_is_foreseen(trained):
    """To a factor: inputs and gradients do depend on each other."""
    texts = torch.cat([text for text, _ in pairs(200)])
    network = load_network(trained, "trained")
    hessians = gather(network, [texts], ALONE)
    _, found = sensitivities(trained, hessians)
    for name, family in {"v": "qkv", "o": "o", "up": "up", "down": "down"}.items():
        errors = 0.02 * torch.randn(
            trained.state[name].shape, generator=torch.Generator().manual_seed(9)
        )
        expected = (row_errors(errors, hessians[family]) * found[name + SENSITIVITY]).sum()
        state = {**trained.state, name: trained.state[name] + errors}
        changed = load_network(dataclasses.replace(trained, state=state), "trained")
        assert 0.4 < divergence(network, changed, texts) / float(expected) < 2.5, name


def test_all_weights_cost_the_same_and_the_bits_stay():
    generator = np.random.default_rng(0)
    scales = {n: torch.tensor(generator.uniform(0.5, 2, (2, r))) for n, r in (("a", 5), ("b", 3))}
    costs = {n: torch.tensor(generator.uniform(0.5, 2, s.shape)) for n, s in scales.items()}
    sizes = {"a": 7, "b": 20}
    found = balanced_scales(scales, costs, sizes, 1.0)
    spent = torch.cat([(found[n].double().square() * costs[n]).flatten() for n in scales])
    assert spent.max() / spent.min() < 1 + 1e-5

    def bits(chosen):
        return sum(sizes[n] * float(s.double().log2().sum()) for n, s in chosen.items())

    assert abs(bits(found) - bits(scales)) < 1e-4
    half, none = (balanced_scales(scales, costs, sizes, share) for share in (0.5, 0.0))
    for n in scales:
        torch.testing.assert_close(none[n], scales[n].float())
        torch.testing.assert_close(half[n], (found[n] * none[n]).sqrt())


def test_rows_that_nothing_reads_stay_within_bounds():
    scales = {"a": torch.ones(1, 3)}
    found = balanced_scales(scales, {"a": torch.tensor([[0.0, 1.0, 1e9]])}, {"a": 4}, 1.0)["a"]
    assert found.isfinite().all()
    assert found.max() <= MOST_CHANGE
    assert found.min() >= 1 / MOST_CHANGE


def test_rows_that_matter_get_finer_steps(trained, hessians):
    for name in NAMES:
        hessians[name + SENSITIVITY] = torch.ones(stacked(trained.state[name]).shape[:2])
    hessians["up" + SENSITIVITY][1] *= 16
    config = make_config(balance=1.0, scale_digits=3)
    tensors, reports = quantize_model(trained, hessians, config)
    scales = tensors["up.scales"].float()
    assert scales[1].mean() < 0.5 * scales[[0, 2, 3]].mean()
    plain = quantize_model(trained, hessians, make_config())[1]
    errors = [[r["error_trace"] for r in some if r["name"] == "up"] for some in (reports, plain)]
    gains = [ours / theirs for ours, theirs in zip(*errors, strict=True)]
    assert gains[1] < 0.3 * min(gains[0], *gains[2:])


def test_sensitivities_that_are_missing_are_named(trained, hessians):
    with pytest.raises(ParamGolfError, match=r"(?s)no sensitivities.*sensitivity_sequences"):
        prepare(trained, hessians, make_config(balance=0.5), CPU)


def test_bounds_of_the_parameters():
    faults = faults_of(dataclasses.replace(make_config(), balance=1.5, scale_digits=0))
    assert len(faults) == 2

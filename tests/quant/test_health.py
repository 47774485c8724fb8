"""Matrices that cost more than they should are named with the cause."""

import pytest
import torch
from process_case import ALONE
from quantize_case import VOCAB, make_config, make_trained, quantize_model

from paramgolf.quant import health
from paramgolf.quant.calibrate import load_network
from paramgolf.quant.health import MOST_DIVERGENCE, add_health
from paramgolf.quant.hessian import gather


@pytest.fixture
def trained(tiny_model):
    """Hidden channels are of unlike sizes, as in trained networks."""
    trained = make_trained(tiny_model())
    sizes = torch.randn(trained.state["up"].shape[:2], generator=torch.Generator().manual_seed(2))
    trained.state["up"] *= sizes.exp().unsqueeze(-1)
    return trained


@pytest.fixture
def texts():
    return torch.randint(VOCAB, (16, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hessians(trained, texts):
    return gather(load_network(trained, "trained"), [texts], ALONE)


def tried(trained, hessians, texts, **changes):
    """Return what is wrong, by parameter and layer, the reports and the divergence."""
    config = make_config(row_fallback=False, **changes)
    tensors, reports = quantize_model(trained, hessians, config)
    divergence = add_health(trained, tensors, reports, texts, ALONE)
    faults = {(r["name"], r["layer"]): r["fault"] for r in reports if r["fault"]}
    return faults, reports, divergence


def test_a_sound_model_costs_what_was_foreseen(trained, hessians, texts, capsys):
    faults, reports, divergence = tried(trained, hessians, texts, trellis=True, balance=0.0)
    assert not faults
    for report in reports:
        assert report["checked_error"] == pytest.approx(report["output_error"], rel=0.01)
    assert 0 < divergence < MOST_DIVERGENCE
    assert "diverge" not in capsys.readouterr().err


@pytest.mark.parametrize("bits", [5, 6])
@pytest.mark.parametrize("place", [0, 13, 63])
def test_a_text_of_a_rare_kind_is_no_fault(trained, bits, place):
    """Its tokens are in no other text, so that a sound matrix loses most in it."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(VOCAB // 2, (64, 64), generator=generator)
    texts[place] = torch.randint(VOCAB // 2, VOCAB, (64,), generator=generator)
    hessians = gather(load_network(trained, "trained"), texts.split(16), ALONE)
    faults, _, _ = tried(trained, hessians, texts, matrix_bits=bits)
    assert not faults


@pytest.fixture
def exchanged(hessians):
    """Hessians of which that of `down` in layer 1 has its channels in another order."""
    hidden = torch.randperm(hessians["down"].shape[1], generator=torch.Generator().manual_seed(1))
    hessians["down"][1] = hessians["down"][1][hidden][:, hidden]
    return hessians


def test_what_costs_next_to_nothing_is_no_fault(trained, exchanged, texts):
    faults, reports, _ = tried(trained, exchanged, texts, matrix_bits=8, mlp_clip=6.0)
    (report,) = (r for r in reports if (r["name"], r["layer"]) == ("down", 1))
    assert report["checked_error"] > 3 * report["output_error"]
    assert not faults


def test_a_hessian_of_another_order_is_named(trained, exchanged, texts, capsys):
    faults, _, _ = tried(trained, exchanged, texts)
    assert set(faults) == {("down", 1)}
    assert "its Hessian is of another order" in faults["down", 1]
    assert "down, layer 1: quantizing takes" in capsys.readouterr().err


def test_inputs_that_were_dead_only_in_calibration_are_counted(trained, hessians, texts):
    hessians["o"][2][:5] = hessians["o"][2][:, :5] = 0
    faults, _, _ = tried(trained, hessians, texts)
    assert set(faults) == {("o", 2)}
    columns = hessians["o"].shape[1]
    assert f"5 of {columns} inputs are dead in its Hessian, 0 in the texts" in faults["o", 2]


def test_a_clip_that_is_too_tight_is_named(trained, hessians, texts):
    clips = dict.fromkeys(("attention_clip", "mlp_clip", "embedding_clip"), 0.4)
    faults, _, _ = tried(trained, hessians, texts, **clips)
    assert {name for name, _ in faults} == {"q", "k", "v", "o", "up", "down", "embedding"}
    assert all("at the ends of their grid; raise its clip" in fault for fault in faults.values())


def test_a_network_that_diverges_is_said(trained, hessians, texts, capsys, monkeypatch):
    monkeypatch.setattr(health, "MOST_DIVERGENCE", 0.01)
    _, _, divergence = tried(trained, hessians, texts, mlp_clip=0.4)
    assert f"tokens diverge by {divergence:.3f} nats" in capsys.readouterr().err


def test_steps_that_are_too_coarse_are_named(trained, hessians, texts):
    faults, _, _ = tried(trained, hessians, texts, matrix_bits=3, attention_clip=20.0)
    of_attention = {place: fault for place, fault in faults.items() if place[0] in "qkvo"}
    assert len(of_attention) == 16
    assert all("more bits" in fault for fault in of_attention.values())

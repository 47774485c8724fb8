"""The last adjustment: it brings the quantized network nearer, in what it stores."""

import dataclasses

import pytest
import torch
from process_case import ALONE, joined, run_ranks
from quantize_case import (
    VOCAB,
    divergence,
    make_config,
    make_hessians,
    make_trained,
    quantize_model,
)
from schema_case import faults_of

from paramgolf.codec.container import dequantized
from paramgolf.quant.adjust import BETAS, EPSILON, Adam, adjust
from paramgolf.quant.calibrate import load_network
from paramgolf.quant.grids import shorten


@pytest.fixture
def quantized(tiny_model):
    """A trained network, quantized coarsely, and texts."""
    trained = make_trained(tiny_model(asymmetric_softcap=True))
    coarse = {"matrix_bits": 3, "attention_clip": 3.0, "mlp_clip": 3.0}
    config = make_config(**coarse, scale_digits=6, vector_digits=5, adjust_steps=12)
    tensors, _ = quantize_model(trained, make_hessians(trained), config)
    texts = torch.randint(VOCAB, (16, 16), generator=torch.Generator().manual_seed(2))
    return trained, config, tensors, texts


def diverging(trained, tensors, texts):
    quantized = dataclasses.replace(trained, state=dequantized(tensors))
    networks = (load_network(one, "trained") for one in (trained, quantized))
    return divergence(*networks, texts)


def test_it_is_the_adam_of_torch():
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(3, 2, generator=generator), torch.randn(5, generator=generator)]
    theirs = [x.clone().requires_grad_() for x in ours]
    adam, reference = Adam(ours), torch.optim.Adam(theirs, betas=BETAS, eps=EPSILON)
    for rate in (0.1, 0.05, 0.02):
        gradients = [torch.randn(x.shape, generator=generator) for x in ours]
        for x, gradient in zip(theirs, gradients, strict=True):
            x.grad = gradient
        reference.param_groups[0]["lr"] = rate
        reference.step()
        adam.step(gradients, rate)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y.detach())


def test_texts_that_were_not_seen_diverge_less(quantized):
    trained, config, tensors, texts = quantized
    found = adjust(trained, tensors, texts[:8], config, ALONE)
    assert diverging(trained, found, texts[8:]) < 0.97 * diverging(trained, tensors, texts[8:])


def test_integers_and_the_embedding_stay_and_the_rest_keeps_its_digits(quantized):
    trained, config, tensors, texts = quantized
    found = adjust(trained, tensors, texts, config, ALONE)
    assert found.keys() == tensors.keys()
    moved = {name for name in found if not torch.equal(found[name], tensors[name])}
    assert {"q.scales", "down.scales", "attn_scale", "resid_mix"} <= moved
    stay = ("embedding.scales", "softcaps", *(n for n in tensors if n.endswith(".integers")))
    assert not moved & set(stay)
    for name in moved:
        assert found[name].dtype == torch.float16
        assert found[name].shape == tensors[name].shape
        digits = config.scale_digits if name.endswith(".scales") else config.vector_digits
        assert torch.equal(found[name], shorten(found[name], digits))


def test_it_learns_from_every_text(quantized):
    trained, config, tensors, texts = quantized
    config = dataclasses.replace(config, adjust_steps=2, scale_digits=10, vector_digits=10)
    texts = texts[:9]  # a batch of eight and one of one
    found = adjust(trained, tensors, texts, config, ALONE)
    for i in range(len(texts)):
        others = texts.clone()
        others[i] = others[i].flip(0)
        changed = adjust(trained, tensors, others, config, ALONE)
        assert any(not torch.equal(found[name], changed[name]) for name in found), i


def work(rank, folder, arguments):
    trained, config, tensors, texts = arguments
    with joined(rank, folder) as runtime:
        found = adjust(trained, tensors if rank == 0 else {}, texts, config, runtime)
    torch.save(found, f"{folder}/{rank}")


def test_two_processes_learn_what_one_does(quantized, tmp_path):
    trained, config, tensors, texts = quantized
    config = dataclasses.replace(config, adjust_steps=3)
    texts = texts[:13]  # the second batch has five, which two do not divide
    alone = adjust(trained, tensors, texts, config, ALONE)
    run_ranks(work, str(tmp_path), (trained, config, tensors, texts))
    main, other = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    for name, tensor in alone.items():
        assert torch.equal(main[name], other[name])
        torch.testing.assert_close(main[name].float(), tensor.float(), rtol=2**-6, atol=0)
    changed = [n for n in alone if not torch.equal(alone[n], tensors[n])]
    equal = sum(torch.equal(main[name], alone[name]) for name in changed)
    assert equal > 0.7 * len(changed)


def test_corrections_of_low_rank_are_refused():
    config = dataclasses.replace(make_config(), adjust_steps=1, low_rank_matrices=3)
    (fault,) = faults_of(config)
    assert fault.startswith("`adjust_steps` needs `low_rank_matrices` 0")

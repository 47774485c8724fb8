"""A small trained model, its Hessians and the parameters of quantize."""

import json
from dataclasses import asdict, replace

import safetensors.torch
import torch
from recipe_case import recipe

from paramgolf.model.network import Network, Pass
from paramgolf.quant.calibrate import HESSIANS_PATH
from paramgolf.quant.hessian import empty_sums
from paramgolf.quant.quantize import prepare, solve_model
from paramgolf.quant.trained import TEXTS, TRAIN_PATH, Trained

CPU = torch.device("cpu")
VOCAB = 64


CONFIG = replace(
    recipe("base").quantize,
    block_columns=16,
    group_columns=16,
    low_rank_group=16,
    fit_code_bytes=35_000,
)


def make_config(**changes):
    return replace(CONFIG, **changes)


def make_trained(model):
    generator = torch.Generator().manual_seed(0)
    state = {
        name: p.detach() + 0.05 * torch.randn(p.shape, generator=generator)
        for name, p in Network(model, VOCAB, seed=0).named_parameters()
    }
    config = {"schema": 1, "vocab_size": VOCAB, "sequence_length": 16, "seed": 7}
    config["model"] = asdict(model)
    return Trained(model, VOCAB, 16, state, config)


def make_hessians(trained):
    """Return Hessians of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(1)
    sums = empty_sums(trained.model, VOCAB, CPU)
    for stack in sums.values():
        for hessian in stack:
            x = torch.randn(300, len(hessian), generator=generator)
            x = x + x[:, :1] + x.roll(1, 1)
            hessian += x.T @ x / 300
    return sums


def quantize_model(trained, hessians, config):
    """Return the tensors to store and one report per matrix."""
    return solve_model(trained, prepare(trained, hessians, config, CPU), config)


def divergence(network, changed, texts):
    """Kullback-Leibler divergence of the changed network's tokens from the network's, nats each."""
    options = Pass(order=network.config.orders[-1])
    with torch.no_grad():
        right, found = (
            torch.log_softmax(one.logits(texts, options).double(), -1) for one in (network, changed)
        )
    return float((right.exp() * (right - found)).sum(-1).mean())


def write_trained(root, trained):
    """Write a trained model as the stage train does."""
    folder = root / TRAIN_PATH
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(trained.config))
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(trained.state))


def write_inputs(root, trained, hessians):
    """Write what the stage quantize reads, a text of 16 tokens among it unless one is given."""
    write_trained(root, trained)
    texts = {TEXTS: torch.arange(16).view(1, 16).int()}
    (root / HESSIANS_PATH).parent.mkdir()
    (root / HESSIANS_PATH).write_bytes(safetensors.torch.save(texts | hessians))

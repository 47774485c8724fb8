"""A small quantised model, as the quantize stage writes it."""

import dataclasses
import json

import safetensors.torch
import torch

from paramgolf.codec.config import PackageConfig
from paramgolf.model.shapes import shapes
from paramgolf.packing.code import frozen_params

VOCAB, LENGTH = 64, 32
QUANTIZED = ("q", "k", "v", "o", "up", "down", "embedding")


def make_options(**changes):
    values = {"codec": "brotli", "limit_bytes": 16_000_000, "prune": False}
    return PackageConfig(**{**values, **changes})


def make_quantized(model, *, seed=0, bits=6):
    """Return tensors and config.json: Gaussian integers of standard deviation 2.4."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    maximum = 2 ** (bits - 1) - 1
    for name, shape in shapes(model, VOCAB).items():
        if name in QUANTIZED:
            values = (2.4 * torch.randn(shape, generator=generator)).round()
            tensors[f"{name}.integers"] = values.clamp(-maximum, maximum).to(torch.int8)
            scales = 0.01 + 0.001 * torch.randn(shape[:-1], generator=generator)
            tensors[f"{name}.scales"] = scales.half()
        else:
            tensors[name] = torch.randn(shape, generator=generator).half()
    config = {"schema": 1, "vocab_size": VOCAB, "sequence_length": LENGTH, "seed": seed}
    config["model"] = json.loads(json.dumps(dataclasses.asdict(model)))
    config["quantize"] = {"bits": dict.fromkeys(QUANTIZED, bits)}
    return tensors, config


def write_quantized(root, tensors, config):
    folder = root / "artifacts/quantize"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(tensors))
    (folder / "config.json").write_text(json.dumps(config))


def sections(params, **training):
    """Return the sections that package freezes into the code, those of training with changes."""
    train = dataclasses.replace(params.train, **training)
    return train, params.eval_sliding, params.eval_ttt


def frozen(params):
    """Return the parameters that package freezes into the code of a recipe."""
    return frozen_params(dataclasses.asdict(params.model), *sections(params))

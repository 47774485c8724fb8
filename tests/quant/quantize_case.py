"""A small trained model, its Hessians and the parameters of quantize."""

import dataclasses

import torch

from paramgolf.model.network import Network
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.hessian import empty_sums
from paramgolf.quant.quantize import prepare, solve_model
from paramgolf.quant.trained import Trained
from paramgolf.runtime import Runtime

CPU = torch.device("cpu")
ALONE = Runtime(0, 1, CPU)
VOCAB = 64


def make_config(**changes):
    values = {
        "method": "gptq",
        "grid": "sdclip",
        "embedding_grid": None,
        "percentile_by": "row",
        "least_reach": 0.0,
        "matrix_bits": 6,
        "mlp_bits": None,
        "embedding_bits": 8,
        "attention_clip": 12.85,
        "mlp_clip": 12.85,
        "embedding_clip": 20.0,
        "hessian_clip": 0.0,
        "balance": 0.0,
        "column_steps": False,
        "damping": 0.01,
        "block_columns": 16,
        "act_order": True,
        "dead_inputs": "mean",
        "row_fallback": True,
        "embedding_method": None,
        "high_bits_matrices": None,
        "low_bits": 5,
        "recurrent_high": False,
        "trellis": False,
        "scale_digits": 10,
        "vector_digits": 10,
        "gate_bits": None,
        "table_bits": None,
        "table_least_reach": 0.0,
        "bigram_proj_bits": None,
        "finer_groups": 0,
        "group_columns": 16,
        "low_rank_matrices": 0,
        "low_rank": 4,
        "low_rank_group": 16,
        "low_rank_left_scales": "component",
        "low_rank_always": False,
        "adjust_steps": 0,
        "fit_bytes": None,
        "fit_code_bytes": 35_000,
        "fit_codec": "brotli",
    }
    return QuantizeConfig(**{**values, **changes})


def make_trained(model):
    generator = torch.Generator().manual_seed(0)
    state = {
        name: p.detach() + 0.05 * torch.randn(p.shape, generator=generator)
        for name, p in Network(model, VOCAB, seed=0).named_parameters()
    }
    config = {"schema": 1, "vocab_size": VOCAB, "sequence_length": 16, "seed": 7}
    config["model"] = dataclasses.asdict(model)
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

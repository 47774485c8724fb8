"""Initial values of the parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paramgolf.model.config import ModelConfig
from paramgolf.model.shapes import shapes

ORTHOGONAL = ("q", "k", "v", "up", "bigram_proj", "value_proj")
ZERO = ("o", "down", "skip_gate", "smear_weight", "smear_scale", "xsa_strength")
CONSTANT = {"bigram_scale": 0.05, "value_scale": 0.1, "lane_merge": 0.5}
FROM_CONFIG = {
    "q_gain": "q_gain",
    "softcaps": "softcap",
    "smear_gate": "smear_gate_init",
    "repeat_step": "repeat_step",
}


def initial_parameters(
    config: ModelConfig, vocab_size: int, seed: int, device: torch.device
) -> dict[str, Tensor]:
    """Return every parameter, float32 on the CPU; the same seed gives the same bytes.

    What is random is drawn on the CPU. `device` factors the matrices: a GPU is seconds quicker, and
    differs by rounding.

    Matrices are orthogonal, the two output projections zero, so that each block starts as the
    identity; tables are normal.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _initial(name, shape, config, generator, device)
        for name, shape in shapes(config, vocab_size).items()
    }


def _initial(
    name: str,
    shape: tuple[int, ...],
    config: ModelConfig,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    if name in ORTHOGONAL:
        drawn = [torch.randn(shape[-2:], generator=generator) for _ in range(math.prod(shape[:-2]))]
        gain = config.bigram_proj_gain if name == "bigram_proj" else 1.0
        return gain * orthogonal(torch.stack(drawn).to(device)).view(shape).cpu()
    if name in ZERO or (name == "head_gate" and config.head_gate != "dense"):
        return torch.zeros(shape)
    deviations = {"value_table": 0.01, "bigram_table": config.bigram_table_std}
    if name in ("embedding", "head_gate", *deviations):
        return torch.randn(shape, generator=generator) * deviations.get(name, 0.005)
    if name in ("resid_mix", "mlp_mix"):  # all of x, nothing of x0
        return torch.tensor([1.0, 0.0])[:, None].expand(shape).clone()
    if name == "value_lambda":  # softmax: 0.71 of the own values, 0.29 of layer 0's (pg#1499)
        return torch.tensor([0.95, 0.05]).expand(shape).clone()
    if name in FROM_CONFIG:
        return torch.full(shape, getattr(config, FROM_CONFIG[name]))
    if name == "lane_keep":  # pg#1204: sqrt(1.1) at each of two sublayers; pg#1529: once
        return torch.full(shape, math.sqrt(1.1) if config.parallel == "routed" else 1.1)
    return torch.full(shape, CONSTANT.get(name, 1.0))


def orthogonal(G: Tensor) -> Tensor:
    """Return a matrix of orthonormal rows, or columns if those are fewer, for each Gaussian one.

    G is [n, rows, cols]. As torch.nn.init.orthogonal_: Q of the QR factorization, with the signs
    that make it uniform.
    """
    # QR of a tall matrix gives orthonormal columns; of a wide one its transpose is taken
    wide = G.shape[-2] < G.shape[-1]
    Q, R = torch.linalg.qr(G.mT if wide else G)
    # LAPACK chooses the signs of R's diagonal; made positive, Q is uniform (Haar)
    Q = Q * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    rows: Tensor = Q.mT if wide else Q
    return rows.contiguous()

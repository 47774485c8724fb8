"""Families: which matrices share a Hessian, and on which grid each is quantised."""

from __future__ import annotations

from torch import Tensor

from paramgolf.model.shapes import PROJECTIONS, TABLES
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.grids import Grid

# matrices that read the same input share its Hessian, and are solved together, their rows stacked
MEMBERS = {
    "qkv": ("q", "k", "v"),
    "o": ("o",),
    "up": ("up",),
    "down": ("down",),
    "embedding": ("embedding",),
}
QUANTIZED = tuple(name for names in MEMBERS.values() for name in names)
MLP = ("up", "down")
GATES = ("head_gate",)
OUTER = (*(name for name in TABLES if name != "embedding"), *PROJECTIONS)


def rounded_bits(name: str, config: QuantizeConfig) -> int | None:
    """Return the bits of a parameter that is rounded without a Hessian; None: it stays float16."""
    if name in GATES:
        return config.gate_bits
    return config.table_bits if name in OUTER else None


def grid_of(name: str, config: QuantizeConfig) -> Grid:
    """Return the grid of a quantised parameter."""
    if name == "embedding":
        clip, bits = config.embedding_clip, config.embedding_bits
    else:
        clip = config.mlp_clip if name in MLP else config.attention_clip
        bits = config.matrix_bits
    return Grid(
        kind=config.grid,
        bits=bits,
        clip=clip,
        hessian_clip=config.hessian_clip,
        least_reach=config.least_reach,
    )


def stacked(tensor: Tensor) -> Tensor:
    """Return a parameter as a stack of matrices [layers, out, in]; the embedding is one layer."""
    return tensor if tensor.dim() == 3 else tensor.unsqueeze(0)

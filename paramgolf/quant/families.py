"""Families: which matrices share a Hessian, and on which grid each is quantised."""

from __future__ import annotations

from torch import Tensor

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


def grid_of(name: str, config: QuantizeConfig) -> Grid:
    """Return the grid of a quantised parameter."""
    if name == "embedding":
        clip, bits = config.embedding_clip, config.embedding_bits
    else:
        clip = config.mlp_clip if name in MLP else config.attention_clip
        bits = config.matrix_bits
    return Grid(kind=config.grid, bits=bits, clip=clip, hessian_clip=config.hessian_clip)


def stacked(tensor: Tensor) -> Tensor:
    """Return a parameter as a stack of matrices [layers, out, in]; the embedding is one layer."""
    return tensor if tensor.dim() == 3 else tensor.unsqueeze(0)

"""Which grid the rows of each parameter get; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paramgolf.model.shapes import MATRICES, MLP, PROJECTIONS, TABLES
from paramgolf.quant.config import PERCENTILES, QuantizeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGrid:
    """How the scale of a row follows from its weights.

    `clip` is the reach in standard deviations of the row (pg#1394) and `hessian_clip` the weight of
    the Hessian in it (pg#1412), 0 for none: they are read by `sdclip` alone, `percentiles`, the
    candidates, by `percentile`. No row reaches less far than `least_reach` (pg#1019).
    """

    kind: Literal["sdclip", "percentile", "absmax"]
    bits: int
    clip: float = 0.0
    hessian_clip: float = 0.0
    least_reach: float = 0.0
    percentiles: tuple[float, ...] = PERCENTILES

    @property
    def maximum(self) -> int:
        """The largest integer, m."""
        return largest_integer(self.bits)


def grid_of(
    name: str, config: QuantizeConfig, percentiles: tuple[float, ...] = PERCENTILES
) -> RowGrid:
    """Return the grid of a parameter at the bits that `matrix_bits`, or its own key, gives it."""
    kind, clip, bits = config.grid, config.attention_clip, config.matrix_bits
    least_reach = config.least_reach
    if name == "embedding":
        kind, clip = config.embedding_grid or config.grid, config.embedding_clip
        bits = config.embedding_bits or bits
    elif name in MLP:
        clip, bits = config.mlp_clip, config.mlp_bits or bits
    elif name not in (*MATRICES, *PROJECTIONS):
        kind, least_reach = "absmax", config.table_least_reach if name in TABLES else 0.0
    return RowGrid(
        kind=kind,
        bits=bits,
        clip=clip,
        hessian_clip=config.hessian_clip,
        least_reach=least_reach,
        percentiles=percentiles,
    )


def largest_integer(bits: int) -> int:
    """Return m = 2^(bits - 1) - 1."""
    return (1 << bits - 1) - 1

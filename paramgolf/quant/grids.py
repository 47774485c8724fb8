"""Grids: one scale for each row of a matrix, from which GPTQ or rounding makes integers.

A row's grid is scale * {-m .. m}, m = 2^(bits-1) - 1: symmetric, so -2^(bits-1) is never used.
Legend: N matrices of a stack, R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from paramgolf.codec.dequantize import dequantize

PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)  # candidates of #414 and #1019
SMALLEST_SCALE = torch.finfo(torch.float16).tiny  # 6.1e-5; below it float16 loses digits, then is 0
LARGEST_SCALE = torch.finfo(torch.float16).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How the rows of a matrix are quantised; the clips are read by `sdclip` alone.

    `clip` is the largest representable weight in standard deviations of its row (#1394);
    `hessian_clip` is the weight of the Hessian in it (#1412), 0 for none. The other kinds let no
    row's largest representable weight be less than `least_reach` (#1019).
    """

    kind: Literal["sdclip", "percentile", "absmax"]
    bits: int
    clip: float = 0.0
    hessian_clip: float = 0.0
    least_reach: float = 0.0

    @property
    def maximum(self) -> int:
        """The largest integer, m."""
        return 2 ** (self.bits - 1) - 1


def row_scales(weight_NRC: Tensor, diagonal_NC: Tensor, grid: Grid) -> Tensor:
    """Return the scale of each row, float16 [N, R].

    `weight_NRC` is float32; `diagonal_NC` is the Hessians' diagonal, which weighs the columns of
    the percentile search and of `hessian_clip`. Scales are rounded to float16 here, before any
    integer is chosen, so that encoder and decoder multiply by the same number.
    """
    match grid.kind:
        case "sdclip":
            reach = _sdclip(weight_NRC, diagonal_NC, grid)
        case "percentile":
            reach = _percentile(weight_NRC, diagonal_NC, grid)
        case "absmax":
            reach = weight_NRC.abs().amax(-1).clamp_min(grid.least_reach)
    return round_scales(reach / grid.maximum)


def round_scales(scale_NR: Tensor) -> Tensor:
    """Round scales to float16, kept within its normal range: a row of zeros gets the smallest."""
    return scale_NR.clamp(SMALLEST_SCALE, LARGEST_SCALE).half()


def shorten(half: Tensor, digits: int) -> Tensor:
    """Round float16 to `digits` binary digits after the first, of which it has 10; halves go up."""
    spare = 10 - digits
    bits = half.view(torch.int16)
    magnitude = (bits & 0x7FFF).int() + (1 << spare >> 1) >> spare << spare
    largest = 0x7BFF >> spare << spare  # 0x7C00 is infinity
    return (magnitude.clamp_max(largest).short() | bits & -0x8000).view(torch.float16)


def nearest(
    weight_NRC: Tensor, scale_NR: Tensor, maximum_NR: Tensor, factor_NRC: Tensor | None = None
) -> Tensor:
    """Round each weight to the nearest point of its row's grid: integers as float32 [N, R, C].

    Where there is a `factor`, a weight's step is its row's scale times that, its reach the same.
    """
    limit = maximum_NR.unsqueeze(-1)
    if factor_NRC is not None:
        weight_NRC, limit = weight_NRC / factor_NRC, limit / factor_NRC
    return (weight_NRC / scale_NR.float().unsqueeze(-1)).round().clamp(-limit, limit)


def _sdclip(weight_NRC: Tensor, diagonal_NC: Tensor, grid: Grid) -> Tensor:
    """Return clip * standard deviation (ddof 1) of each row (#1394)."""
    if weight_NRC.shape[-1] == 1:  # one weight has no deviation
        return weight_NRC.abs().squeeze(-1)
    reach = grid.clip * weight_NRC.std(dim=-1, correction=1)
    if grid.hessian_clip:
        reach = reach * (1 + grid.hessian_clip * (_row_importance(weight_NRC, diagonal_NC) - 1))
    return reach


def _row_importance(weight_NRC: Tensor, diagonal_NC: Tensor) -> Tensor:
    """Return each row's mean |w| weighted by the columns' importance, 1 on average (#1412)."""
    tiny = torch.finfo(torch.float32).tiny  # a matrix of zeros, or one never used: importance 0
    column_N1C = (diagonal_NC / diagonal_NC.mean(-1, keepdim=True).clamp_min(tiny)).unsqueeze(1)
    row_NR = (weight_NRC.abs() * column_N1C).mean(-1)
    return row_NR / row_NR.mean(-1, keepdim=True).clamp_min(tiny)


def _percentile(weight_NRC: Tensor, diagonal_NC: Tensor, grid: Grid) -> Tensor:
    """Return, for each row, the percentile of |w| whose grid has the least weighted error.

    The error of a candidate is the sum over columns of H_jj (w_j - q_j s)^2 under rounding to the
    nearest, with s as stored.
    """
    limit = torch.full(weight_NRC.shape[:-1], float(grid.maximum), device=weight_NRC.device)
    best = error = None
    for percentile in _percentiles(weight_NRC.abs()):
        reach = percentile.clamp_min(grid.least_reach)
        scale = round_scales(reach / grid.maximum)
        residual = weight_NRC - dequantize(nearest(weight_NRC, scale, limit), scale)
        candidate = (residual.square() * diagonal_NC.unsqueeze(1)).sum(-1)
        if best is None or error is None:
            best, error = reach, candidate
        else:
            # on a tie the later, wider candidate wins: nothing is clipped where nothing matters
            best = torch.where(candidate <= error, reach, best)
            error = torch.minimum(candidate, error)
    assert best is not None
    return best


def _percentiles(magnitude_NRC: Tensor) -> list[Tensor]:
    """Return PERCENTILES of each row, interpolated; torch.quantile refuses large tensors."""
    ordered = magnitude_NRC.sort(dim=-1).values
    last = ordered.shape[-1] - 1
    places = [(int(p * last), p * last - int(p * last)) for p in PERCENTILES]
    return [
        torch.lerp(ordered[..., low], ordered[..., min(low + 1, last)], part)
        for low, part in places
    ]

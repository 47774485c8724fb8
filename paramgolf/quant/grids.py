"""Grids: the numbers that a row's weights may take, and rounding to the nearest of them.

A row's grid is s * {-m .. m}: s its scale, stored as float16, and m = 2^(bits - 1) - 1, so that
-2^(bits - 1) is never used and zero is in the middle. Its reach, s * m, is the largest weight that
it can hold; what lies beyond is clipped. A small reach clips more and rounds less coarsely.

Legend: N matrices of a stack, R rows (outputs), C columns (inputs); W weights, q integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paramgolf.codec.dequantize import dequantize
from paramgolf.quant.config import MOST_BITS
from paramgolf.quant.row_grid import RowGrid, largest_integer
from paramgolf.quant.trellis import best_paths

SMALLEST_SCALE = torch.finfo(torch.float16).tiny  # 6.1e-5; below it float16 loses digits, then is 0
LARGEST_SCALE = torch.finfo(torch.float16).max
FLOAT16_DIGITS = 10  # binary digits of a float16 after its first


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of weights, and the grid of each.

    Attributes:
        weight: W, float32 [N, R, C].
        scale: s, float16 [N, R].
        maximum: m, float32 [N, R].
        factor: what multiplies s, and divides m, of each weight, [N, R, C]; None: 1 everywhere.
        cost: what a squared error in each row costs, [N, R]; None: the same in all.
        paths: rows of each path of the trellis (quant.trellis), which are R in all; (): no trellis.
    """

    weight: Tensor
    scale: Tensor
    maximum: Tensor
    factor: Tensor | None = None
    paths: tuple[int, ...] = ()
    cost: Tensor | None = None

    @property
    def step_cost(self) -> Tensor:
        """What the square of an error of one scale costs in each row, float32 [N, R]."""
        square = self.scale.float().square()
        return square if self.cost is None else square * self.cost

    def dequantize(self, integers_NRC: Tensor) -> Tensor:
        """Return the weights that integers stand for, float32 [N, R, C]."""
        weight = dequantize(integers_NRC, self.scale)
        return weight if self.factor is None else weight * self.factor


def row_scales(weight_NRC: Tensor, diagonal_NC: Tensor, grid: RowGrid) -> Tensor:
    """Return the scale of each row, float16 [N, R].

    `weight_NRC` is float32; `diagonal_NC` is the Hessians' diagonal, which weighs the columns of
    the percentile search and of `hessian_clip`. Scales are rounded to float16 here, before any
    integer is chosen, so that encoder and decoder multiply by the same number.
    """
    match grid.kind:
        case "sdclip":
            reach = _deviations(weight_NRC, diagonal_NC, grid)
        case "percentile":
            reach = _best_percentile(weight_NRC, diagonal_NC, grid)
        case "absmax":
            reach = weight_NRC.abs().amax(-1)
    return round_scales(reach.clamp_min(grid.least_reach) / grid.maximum)


def round_scales(scale_NR: Tensor) -> Tensor:
    """Round scales to float16, kept within its normal range: a row of zeros gets the smallest."""
    return scale_NR.clamp(SMALLEST_SCALE, LARGEST_SCALE).half()


def shorten(half: Tensor, digits: int) -> Tensor:
    """Round float16 to `digits` binary digits after the first, of which it has 10; halves go up.

    A float16's bit pattern without its sign is a whole number that grows with the number it stands
    for, so that rounding the pattern rounds the number, a carry into the exponent included.
    """
    dropped = FLOAT16_DIGITS - digits
    pattern = half.view(torch.int16)
    magnitude = (pattern & 0x7FFF).int() + (1 << dropped >> 1) >> dropped << dropped
    largest = 0x7BFF >> dropped << dropped  # the next pattern, 0x7C00, is infinity
    return (magnitude.clamp_max(largest).short() | pattern & -0x8000).view(torch.float16)


def nearest(rows: Rows) -> Tensor:
    """Round each weight to the nearest point of its grid: integers as float32 [N, R, C].

    With a trellis, to the nearest path of each column.
    """
    scale_NR1, limit_NR1 = rows.scale.float().unsqueeze(-1), rows.maximum.unsqueeze(-1)
    weight = rows.weight
    if rows.factor is not None:
        weight, limit_NR1 = weight / rows.factor, reached(limit_NR1, rows.factor)
    if rows.paths:
        columns_NCR = (weight / scale_NR1).transpose(1, 2)
        cost_NCR = rows.step_cost.unsqueeze(1).expand_as(columns_NCR)
        limit_NCR = limit_NR1.transpose(1, 2).expand_as(columns_NCR)
        return best_paths(columns_NCR, cost_NCR, limit_NCR, rows.paths).transpose(1, 2)
    return (weight / scale_NR1).round().clamp(-limit_NR1, limit_NR1)


def reached(maximum: Tensor, factor: Tensor) -> Tensor:
    """Return the largest integers for steps times `factor`: for the same reach, within int8."""
    return (maximum / factor).floor().clamp_max(largest_integer(MOST_BITS))


def whole_steps(rows: Rows) -> Tensor:
    """Return the nearest even integers, [N, R, C]: a trellis's grid without the trellis."""
    twice = replace(rows, scale=rows.scale * 2, maximum=(rows.maximum / 2).floor(), paths=())
    return 2 * nearest(twice)


def _deviations(weight_NRC: Tensor, diagonal_NC: Tensor, grid: RowGrid) -> Tensor:
    """Return clip times the standard deviation (ddof 1) of each row (pg#1394)."""
    if weight_NRC.shape[-1] == 1:  # one weight has no deviation
        return weight_NRC.abs().squeeze(-1)
    reach = grid.clip * weight_NRC.std(dim=-1, correction=1)
    if grid.hessian_clip:
        reach = reach * (1 + grid.hessian_clip * (_row_importance(weight_NRC, diagonal_NC) - 1))
    return reach


def _row_importance(weight_NRC: Tensor, diagonal_NC: Tensor) -> Tensor:
    """Return each row's mean |w| weighted by the columns' importance, 1 on average (pg#1412)."""
    tiny = torch.finfo(torch.float32).tiny  # a matrix of zeros, or one never used: importance 0
    column_N1C = (diagonal_NC / diagonal_NC.mean(-1, keepdim=True).clamp_min(tiny)).unsqueeze(1)
    row_NR = (weight_NRC.abs() * column_N1C).mean(-1)
    return row_NR / row_NR.mean(-1, keepdim=True).clamp_min(tiny)


def _best_percentile(weight_NRC: Tensor, diagonal_NC: Tensor, grid: RowGrid) -> Tensor:
    """Return, for each row, the percentile of |w| whose grid has the least weighted error.

    The error of a candidate is the sum over columns of H_jj (w_j - q_j s)^2 under rounding to the
    nearest, with s as stored.
    """
    limit = torch.full(weight_NRC.shape[:-1], float(grid.maximum), device=weight_NRC.device)
    best, error = torch.zeros_like(limit), torch.full_like(limit, torch.inf)
    for percentile in _percentiles(weight_NRC.abs(), grid.percentiles):
        reach = percentile.clamp_min(grid.least_reach)
        scale = round_scales(reach / grid.maximum)
        rows = Rows(weight_NRC, scale, limit)
        residual = weight_NRC - rows.dequantize(nearest(rows))
        candidate = (residual.square() * diagonal_NC.unsqueeze(1)).sum(-1)
        # on a tie the later, wider candidate wins: nothing is clipped where nothing matters
        best = torch.where(candidate <= error, reach, best)
        error = torch.minimum(candidate, error)
    return best


def _percentiles(magnitude_NRC: Tensor, shares: tuple[float, ...]) -> list[Tensor]:
    """Return percentiles of each row, interpolated; torch.quantile refuses large tensors."""
    ordered = magnitude_NRC.sort(dim=-1).values
    last = ordered.shape[-1] - 1
    ranks = [(int(p * last), p * last - int(p * last)) for p in shares]
    return [
        torch.lerp(ordered[..., low], ordered[..., min(low + 1, last)], fraction)
        for low, fraction in ranks
    ]

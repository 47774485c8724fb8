"""GPTQ (arXiv 2210.17323): round column by column, and let later columns make up for each error.

Three functions: `factorise` a Hessian's inverse, `solve` for the integers of a whole stack of
matrices at once, and `quantize_rows`, which keeps for each row the better of GPTQ and rounding.
Legend: N matrices of a stack, R rows (outputs), C columns (inputs), H the mean of x x^T over the
matrix's inputs x, E = W - dequantised W; the error that matters is tr(E H E^T).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from paramgolf.codec.dequantize import dequantize
from paramgolf.errors import ParamGolfError
from paramgolf.progress import say
from paramgolf.quant.captured import captured
from paramgolf.quant.grids import nearest
from paramgolf.quant.trellis import choose

LADDER_STEPS = 5
SMALLEST_STEP = 1e-6  # what the ladder starts from where the damping asked for is 0
POWER_ITERATIONS = 12
FIX = "calibrate on more or other text, or raise quantize.damping"


@dataclass(frozen=True, slots=True)
class Factors:
    """What `solve` needs of a stack's Hessians, and what the report says of them.

    `upper` [N, C, C] float32 has upper^T upper = inverse of the damped Hessian, columns in `order`
    [N, C]; `dead` [N, C] marks the columns whose input was always 0. `damping` and `condition` (of
    the damped Hessian, 2-norm, estimated from below) hold one number a matrix.
    """

    upper: Tensor
    order: Tensor
    dead: Tensor
    damping: list[float]
    condition: list[float]


def factorise(hessian_NCC: Tensor, *, damping: float, act_order: bool, family: str) -> Factors:
    """Damp and factorise each Hessian of a stack, in float64.

    With `act_order` the columns with the largest diagonal come first. Damping is a share of the
    mean diagonal of the columns that are alive; where the factorisation fails it climbs tenfold,
    and says so with the family and the layer. Raises where a Hessian is not finite or the ladder
    ends.
    """
    _refuse_non_finite(hessian_NCC, family)
    diagonal = hessian_NCC.diagonal(dim1=1, dim2=2)
    dead = diagonal <= 0
    # a stable sort, so that equal columns come in the same order on every device
    order = diagonal.argsort(dim=1, descending=True, stable=True) if act_order else None
    if order is None:
        order = torch.arange(diagonal.shape[1], device=diagonal.device).expand_as(diagonal)
    upper = torch.empty_like(hessian_NCC, dtype=torch.float32)
    used, condition = [], []
    for i, hessian in enumerate(hessian_NCC):
        alive = _revive(hessian.double(), dead[i])[order[i]][:, order[i]]
        factor, step = _inverse_cholesky(alive, damping, f"{family}, layer {i}")
        upper[i] = factor.float()
        used.append(step)
        condition.append(_condition(alive, step, upper[i]))
    return Factors(upper, order, dead, used, condition)


def solve(
    weight_NRC: Tensor,
    scale_NR: Tensor,
    maximum_NR: Tensor,
    factors: Factors,
    *,
    block_columns: int,
    factor_NRC: Tensor | None = None,
    segment: int = 0,
) -> Tensor:
    """Return GPTQ's integers as float32 [N, R, C], columns in their original order.

    Within a block an error is carried to a column when that column's turn comes; to the columns
    after the block all of a block's errors are carried at once. Dead columns become 0. `factor`
    makes steps finer as in `nearest`; with a `segment` a trellis chooses each column's integers.
    """
    columns = weight_NRC.shape[2]
    step, maximum = scale_NR.float(), maximum_NR
    where = factors.order.unsqueeze(-1).expand(-1, -1, weight_NRC.shape[1])
    factor = None if factor_NRC is None else factor_NRC.transpose(1, 2).gather(1, where)
    # column-major, so that a column of all matrices is one contiguous read
    weight = weight_NRC.float().masked_fill(factors.dead.unsqueeze(1), 0.0)
    work = weight.transpose(1, 2).gather(1, where)
    integers = torch.empty_like(work)
    upper = factors.upper
    pivot = upper.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    by_trellis: Callable[..., Tensor] = functools.partial(_by_trellis, segment=segment)
    if segment:
        by_trellis = captured(by_trellis, work[:, 0], step, maximum)
    for start in range(0, columns, block_columns):
        stop = min(start + block_columns, columns)
        errors = work.new_empty(work.shape[0], stop - start, work.shape[2])
        for j in range(start, stop):
            done = j - start
            carried = upper[:, start:j, j].unsqueeze(1) @ errors[:, :done]
            column = work[:, j] - carried.squeeze(1)
            if factor is not None:
                step, maximum = scale_NR.float() * factor[:, j], maximum_NR / factor[:, j]
            if segment:
                integers[:, j] = by_trellis(column, step, maximum)
            else:
                integers[:, j] = (column / step).round().clamp(-maximum, maximum)
            errors[:, done] = (column - integers[:, j] * step) / pivot[:, j]
        work[:, stop:] -= upper[:, start:stop, stop:].transpose(1, 2) @ errors
    return torch.empty_like(integers).scatter_(1, where, integers).transpose(1, 2)


def quantize_rows(
    weight_NRC: Tensor,
    scale_NR: Tensor,
    maximum_NR: Tensor,
    hessian_NCC: Tensor,
    factors: Factors,
    *,
    block_columns: int,
    factor_NRC: Tensor | None = None,
    segment: int = 0,
) -> Tensor:
    """Return integers, float32 [N, R, C]: each row's from GPTQ, or from rounding where better.

    GPTQ is greedy and can lose to rounding on a row that is clipped hard; rows (segments of them,
    with a trellis) do not depend on each other, so tr(E H E^T) is never above that of rounding on
    the same grid.
    """
    alive = weight_NRC.masked_fill(factors.dead.unsqueeze(1), 0.0)
    if segment:
        rounded = nearest_by_trellis(alive, scale_NR, maximum_NR, segment)
    else:
        rounded = nearest(alive, scale_NR, maximum_NR, factor_NRC)
    greedy = solve(
        weight_NRC,
        scale_NR,
        maximum_NR,
        factors,
        block_columns=block_columns,
        factor_NRC=factor_NRC,
        segment=segment,
    )

    def errors(integers: Tensor) -> Tensor:
        found = dequantize(integers, scale_NR)
        found = found if factor_NRC is None else found * factor_NRC
        each = row_errors(weight_NRC - found, hessian_NCC)
        whole = each.unflatten(1, (-1, segment or 1)).sum(-1)
        return whole.repeat_interleave(segment or 1, 1)

    return torch.where((errors(rounded) < errors(greedy)).unsqueeze(-1), rounded, greedy)


def nearest_by_trellis(
    weight_NRC: Tensor, scale_NR: Tensor, maximum_NR: Tensor, segment: int
) -> Tensor:
    """Round each column along the trellis's nearest path: integers as float32 [N, R, C]."""
    columns, step = weight_NRC.float().transpose(1, 2), scale_NR.float().unsqueeze(1)
    maximum = maximum_NR.unsqueeze(1).expand_as(columns)
    return _by_trellis(columns, step.expand_as(columns), maximum, segment).transpose(1, 2)


def _by_trellis(column: Tensor, step: Tensor, maximum: Tensor, segment: int) -> Tensor:
    return choose(column / step, step.square(), maximum, segment)


def row_errors(error_NRC: Tensor, hessian_NCC: Tensor) -> Tensor:
    """Return e H e^T of each row e, [N, R]; their sum over rows is tr(E H E^T)."""
    return ((error_NRC @ hessian_NCC) * error_NRC).sum(-1)


def _refuse_non_finite(hessian_NCC: Tensor, family: str) -> None:
    bad = (~hessian_NCC.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise ParamGolfError(
            "a Hessian holds values that are not finite",
            where=f"{family}, layers {bad}",
            fix="the network overflows on its calibration text; look at the training log",
        )


def _revive(hessian: Tensor, dead: Tensor) -> Tensor:
    """Cut dead columns off from the others and give them the mean diagonal of the living."""
    alive = ~dead
    mean = hessian.diagonal()[alive].mean() if alive.any() else hessian.new_ones(())
    hessian = hessian * (alive.unsqueeze(0) & alive.unsqueeze(1))
    hessian.diagonal()[dead] = mean
    return hessian


def _inverse_cholesky(hessian: Tensor, damping: float, name: str) -> tuple[Tensor, float]:
    """Return upper-triangular U with U^T U = (H + damping mean(diag H) I)^-1, and the damping used.

    With J the reversal of the order, J H J = L L^T gives H = R R^T with R = J L J upper triangular,
    so that U = R^-1: one factorisation and one triangular solve, no explicit inverse of H.
    """
    mean = hessian.diagonal().mean()
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    steps = [damping] + [max(damping, SMALLEST_STEP) * 10**i for i in range(1, LADDER_STEPS)]
    for step in steps:
        lower, failed = torch.linalg.cholesky_ex((hessian + step * mean * identity).flip(0, 1))
        if failed.item() == 0:
            upper = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            if upper.float().isfinite().all():
                if step != damping:
                    say(f"quantize: {name}: the Hessian needed damping {step:g}, not {damping:g}")
                return upper, step
    tried = ", ".join(f"{step:g}" for step in steps)
    raise ParamGolfError(
        "a Hessian could not be factorised", where=name, found=f"damping tried: {tried}", fix=FIX
    )


def _condition(hessian: Tensor, step: float, upper: Tensor) -> float:
    """Estimate the damped Hessian's condition (2-norm): power iteration on it and its inverse."""
    damped = hessian.float()
    shift = step * float(damped.diagonal().mean())
    start = torch.ones(len(damped), device=damped.device)
    largest = _norm_by_power(lambda x: damped @ x + shift * x, start)
    inverse = _norm_by_power(lambda x: upper.T @ (upper @ x), start)
    return largest * inverse


def _norm_by_power(multiply: Callable[[Tensor], Tensor], start: Tensor) -> float:
    vector, size = start / start.norm(), 0.0
    for _ in range(POWER_ITERATIONS):
        image = multiply(vector)
        size = float(image.norm())
        if size == 0:
            return 0.0
        vector = image / size
    return size

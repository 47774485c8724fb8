"""GPTQ (arXiv 2210.17323): round column by column, and let later columns make up for each error.

Of integers Q on a grid, those are wanted that change a matrix's outputs least: with inputs x and
H the mean of x x^T, the mean squared change of the outputs is tr(E H E^T), E = W - s Q. (The paper
has H = 2 X X^T; a factor of H changes nothing.) Rows do not depend on each other, and share H.

Rounding one weight leaves an error that the weights that are still free can make up for in part.
If column j is rounded first and F are the free columns, j among them, the least error is left by

    w_F <- w_F - (w_j - s q_j) / [H_F^-1]_jj * [H_F^-1]_j,F      (Optimal Brain Surgeon)

and the next step needs the inverse of H without row and column j. GPTQ takes the columns in one
order for all rows, so that these inverses are the same for all, and finds them all in one
factorization: with H^-1 = U^T U, U upper triangular, row j of U is [H_F^-1]_j,F / sqrt([H_F^-1]_jj)
for F = j, j + 1, ... So the step is, in the paper's words and in ours,

    Err_j = (w_j - s q_j) / U_jj                                 errors = (column - s q) / pivot
    w_k  <- w_k - Err_j U_jk      for k > j                      work -= errors * upper[j, k]

`factorize` makes U, `solve` the integers of a whole stack of matrices at once, and `quantize_rows`
keeps for each row the better of GPTQ and rounding.

Legend: N matrices of a stack, R rows (outputs), C columns (inputs); upper is U, pivot its diagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from paramgolf.errors import ParamGolfError
from paramgolf.progress import say
from paramgolf.quant.grids import Rows, nearest, reached, whole_steps
from paramgolf.quant.trellis import best_paths

LADDER_STEPS = 5
SMALLEST_DAMPING = 1e-6  # what the ladder starts from where the damping asked for is 0
POWER_ITERATIONS = 12
FIX = "calibrate on more or other text, or raise quantize.damping"


@dataclass(frozen=True, slots=True)
class Factors:
    """What `solve` needs of a stack's Hessians, and what the report says of them.

    Attributes:
        upper: U, float32 [N, C, C], U^T U the inverse of the damped Hessian, columns in `order`.
        order: int64 [N, C], the column that comes first, second, ...
        dead: bool [N, C], the columns whose input was always 0.
        damping: what was added to the diagonal, as a share of its mean, one number per matrix.
        condition: of the damped Hessian (2-norm, estimated from below), one number per matrix.
    """

    upper: Tensor
    order: Tensor
    dead: Tensor
    damping: list[float]
    condition: list[float]


def factorize(
    hessian_NCC: Tensor,
    *,
    damping: float,
    act_order: bool,
    family: str,
    dead_inputs: Literal["mean", "one"] = "mean",
) -> Factors:
    """Damp and factorize each Hessian of a stack, in float64.

    With `act_order` the columns with the largest diagonal come first: they have all others left to
    make up for their errors. Damping is a share of the mean diagonal, dead columns counting by what
    `dead_inputs` gives them (see quantize.dead_inputs); where the factorization fails it climbs
    tenfold, and says so with the family and the layer. Raises where a Hessian is not finite or the
    ladder ends.
    """
    _refuse_non_finite(hessian_NCC, family)
    # H_jj is the mean square of input j: 0 where it was 0 for every token
    diagonal = hessian_NCC.diagonal(dim1=1, dim2=2)
    dead = diagonal <= 0
    # a stable sort, so that equal columns come in the same order on every device
    sizes = diagonal if act_order else torch.zeros_like(diagonal)
    order = sizes.argsort(dim=1, descending=True, stable=True)
    upper = torch.empty_like(hessian_NCC, dtype=torch.float32)
    used, condition = [], []
    for i, hessian in enumerate(hessian_NCC):
        alive = _revive(hessian.double(), dead[i], dead_inputs)[order[i]][:, order[i]]
        inverse, share = _inverse_cholesky(alive, damping, f"{family}, layer {i}")
        upper[i] = inverse.float()
        used.append(share)
        condition.append(_condition(alive, share, upper[i]))
    return Factors(upper, order, dead, used, condition)


def solve(rows: Rows, factors: Factors, *, block_columns: int) -> Tensor:
    """Return GPTQ's integers as float32 [N, R, C], columns in their original order.

    Within a block of columns an error is carried to a column when that column's turn comes; to the
    columns after the block all of a block's errors are carried at once, by one product of matrices
    (the paper's lazy batches): the same sums, but memory is read once per block, not per column.
    Dead columns become 0. With a trellis the integers of a column are the best path along it.
    """
    columns = rows.weight.shape[2]
    scale, maximum = rows.scale.float(), rows.maximum
    # columns first and in order, so that a column of all matrices is one contiguous read
    index = factors.order.unsqueeze(-1).expand(-1, -1, rows.weight.shape[1])
    weight = rows.weight.float().masked_fill(factors.dead.unsqueeze(1), 0.0)
    work = weight.transpose(1, 2).gather(1, index)  # the paper's W, updated as columns are done
    finer = rows.factor
    finer = None if finer is None else finer.transpose(1, 2).gather(1, index)
    step_cost = rows.step_cost
    integers = torch.empty_like(work)  # the paper's Q
    upper = factors.upper
    pivot = upper.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    for start in range(0, columns, block_columns):
        stop = min(start + block_columns, columns)
        errors = work.new_empty(work.shape[0], stop - start, work.shape[2])  # Err of this block
        for j in range(start, stop):
            done = j - start
            # w_j less what the columns of this block before it carry on: sum of Err_i U_ij
            carried = upper[:, start:j, j].unsqueeze(1) @ errors[:, :done]
            column = work[:, j] - carried.squeeze(1)
            if finer is not None:
                # another step on the same reach: s and m of this column alone
                scale = rows.scale.float() * finer[:, j]
                maximum = reached(rows.maximum, finer[:, j])
            wanted = column / scale
            if rows.paths:
                integers[:, j] = best_paths(wanted, step_cost, maximum, rows.paths)
            else:
                integers[:, j] = wanted.round().clamp(-maximum, maximum)
            # Err_j = (w_j - s q_j) / U_jj, where clipping has its part as well as rounding
            errors[:, done] = (column - integers[:, j] * scale) / pivot[:, j]
        # w_k <- w_k - sum of Err_j U_jk over the block, for all k behind it
        work[:, stop:] -= upper[:, start:stop, stop:].transpose(1, 2) @ errors
    return torch.empty_like(integers).scatter_(1, index, integers).transpose(1, 2)


def quantize_rows(
    rows: Rows, hessian_NCC: Tensor, factors: Factors, *, block_columns: int
) -> Tensor:
    """Return integers, float32 [N, R, C]: each row's from GPTQ, or from rounding where better.

    GPTQ is greedy, and on a row that is clipped hard rounding can be better. Rows are independent
    of each other (with a trellis, the rows of one path from those of another). So tr(E H E^T) is
    never above that of rounding on the same grid, or, with a trellis, on the grid of whole steps.
    """
    # rounding too must leave dead columns at 0: no output depends on them, and zeros cost least
    alive = replace(rows, weight=rows.weight.masked_fill(factors.dead.unsqueeze(1), 0.0))
    greedy = solve(rows, factors, block_columns=block_columns)

    def errors(integers: Tensor) -> Tensor:
        each = row_errors(rows.weight - rows.dequantize(integers), hessian_NCC)
        if not rows.paths:
            return each
        each = each if rows.cost is None else each * rows.cost
        # rows that one path runs through stand or fall together
        parts = each.split(list(rows.paths), dim=1)
        return torch.cat([part.sum(1, keepdim=True).expand_as(part) for part in parts], 1)

    found = errors(greedy)
    # rounding on the grid of the whole step is far quicker than the nearest paths of all columns
    if rows.paths and (found <= errors(whole_steps(alive))).all():
        return greedy
    rounded = nearest(alive)
    return torch.where((errors(rounded) < found).unsqueeze(-1), rounded, greedy)


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


def _revive(hessian: Tensor, dead: Tensor, dead_inputs: Literal["mean", "one"]) -> Tensor:
    """Cut dead columns off from the others and give them a diagonal above 0.

    A dead input says nothing of its weights, which become 0 whatever stands in for its diagonal.
    The mean of the living leaves the mean, by which damping is measured, as it was; published code
    puts 1, which damps a matrix of small inputs more (pg#1855).
    """
    alive = ~dead
    stand_in = hessian.new_ones(())
    if dead_inputs == "mean" and alive.any():
        stand_in = hessian.diagonal()[alive].mean()
    hessian = hessian * (alive.unsqueeze(0) & alive.unsqueeze(1))
    hessian.diagonal()[dead] = stand_in
    return hessian


def _inverse_cholesky(hessian: Tensor, damping: float, name: str) -> tuple[Tensor, float]:
    """Return upper-triangular U with U^T U = (H + damping mean(diag H) I)^-1, and the damping used.

    With J the reversal of the order, J H J = L L^T gives H = R R^T with R = J L J upper triangular,
    and H^-1 = R^-T R^-1, so that U = R^-1: one factorization and one triangular solve. The paper
    inverts H and factorizes the inverse, which loses digits where H is nearly singular.
    """
    mean = hessian.diagonal().mean()
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    ladder = [damping] + [max(damping, SMALLEST_DAMPING) * 10**i for i in range(1, LADDER_STEPS)]
    for share in ladder:
        # flip reverses rows and columns: J H J
        lower, failed = torch.linalg.cholesky_ex((hessian + share * mean * identity).flip(0, 1))
        if failed.item() == 0:
            upper = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            # a factorization may succeed and its inverse still leave float32
            if upper.float().isfinite().all():
                if share != damping:
                    say(f"quantize: {name}: the Hessian needed damping {share:g}, not {damping:g}")
                return upper, share
    tried = ", ".join(f"{share:g}" for share in ladder)
    raise ParamGolfError(
        "a Hessian could not be factorized", where=name, found=f"damping tried: {tried}", fix=FIX
    )


def _condition(hessian: Tensor, damping: float, upper: Tensor) -> float:
    """Estimate the damped Hessian's condition (2-norm): power iteration on it and its inverse.

    Its inverse is U^T U, so that no other factorization is needed. Both are taken in units of the
    mean diagonal: Hessians of 1e-40 and of 1e37 leave what float32 holds otherwise.
    """
    mean = float(hessian.diagonal().mean())
    damped, root = (hessian / mean).float(), upper.double().mul(mean**0.5).float()
    start = torch.ones(len(damped), device=damped.device)
    largest = _norm_by_power(lambda x: damped @ x + damping * x, start)
    inverse = _norm_by_power(lambda x: root.T @ (root @ x), start)
    return largest * inverse


def _norm_by_power(multiply: Callable[[Tensor], Tensor], start: Tensor) -> float:
    # v <- A v / |A v| turns to the largest eigenvector of a symmetric A, |A v| to its eigenvalue
    vector, size = start / start.norm(), 0.0
    for _ in range(POWER_ITERATIONS):
        image = multiply(vector)
        size = float(image.norm())
        if size == 0:
            return 0.0
        vector = image / size
    return size

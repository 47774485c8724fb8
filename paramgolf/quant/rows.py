"""Rows that make up for each other's errors: GPTQ across outputs as well as inputs.

With y = W x the outputs of a matrix and G = E[dL/dy dL/dy^T], the Fisher information of its weights
is G (x) H if dL/dy and x do not depend on each other (K-FAC, arXiv 1503.05671). An error E costs
tr(G E H E^T) / 2 then: rows are coupled by G as columns are by H. GPTQ takes G as diagonal. Where
it is not, the rows that are still free can make up for a part of the errors of those that are
quantized (YAQA, arXiv 2505.22988). With G^-1 = U^T U, U upper triangular, and E_B the error of a
block B of rows, their targets become

    W_F <- W_F - U_BF^T U_BB^-T E_B

whatever H is, and what is left of E_B costs tr(S E_B H E_B^T) / 2 with S = (U_BB^T U_BB)^-1. Within
a block, rows are taken as independent, so that a path of the trellis can run through them; paths
go on from block to block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from paramgolf.quant.gptq import factorize
from paramgolf.quant.grids import Rows
from paramgolf.quant.trellis import states_after

SMALLEST = 1e-30  # of a mean cost, by which others are divided


def block_bounds(rows: int, blocks: int) -> list[slice]:
    """Return the blocks of so many rows, of equal sizes but for one row."""
    edges = [rows * i // blocks for i in range(blocks + 1)]
    return [slice(*pair) for pair in pairwise(edges)]


def factorize_rows(fisher_NRR: Tensor, damping: float, name: str) -> Tensor:
    """Return U of the Fisher information of a parameter's rows, damped by a share of its mean."""
    # in units of the mean: what a row's error costs is a small number
    mean_N11 = fisher_NRR.diagonal(dim1=1, dim2=2).mean(1).clamp_min(SMALLEST)[:, None, None]
    where = f"rows of {name}"
    unit = factorize(fisher_NRR / mean_N11, damping=damping, act_order=False, family=where)
    return unit.upper / mean_N11.sqrt()


def left_costs(carry_NRR: Tensor, blocks: int) -> Tensor:
    """Return what is left of the cost of an error in each row, the diagonal of S, [N, R]."""
    costs = carry_NRR.new_empty(carry_NRR.shape[:2])
    for block in block_bounds(carry_NRR.shape[1], blocks):
        own = carry_NRR[:, block, block]
        identity = torch.eye(own.shape[1], device=own.device).expand_as(own)
        inverse = torch.linalg.solve_triangular(own, identity, upper=True)
        costs[:, block] = inverse.square().sum(2)
    return costs


def solve_in_blocks(
    rows: Rows, carry: Mapping[str, Tensor], blocks: int, solve: Callable[[Rows], Tensor]
) -> Tensor:
    """Return the integers of `rows`, float32 [N, R, C], as `solve` finds them block by block.

    `carry` holds U of the parameters whose rows they are, one after another. Block b is of the rows
    of the b-th block of each.
    """
    sizes = [upper.shape[1] for upper in carry.values()]
    firsts = list(accumulate(sizes, initial=0))[:-1]
    work, integers = rows.weight.clone(), torch.zeros_like(rows.weight)
    for part in zip(*(block_bounds(size, blocks) for size in sizes), strict=True):
        index = torch.cat(
            [
                torch.arange(first + own.start, first + own.stop, device=work.device)
                for first, own in zip(firsts, part, strict=True)
            ]
        )
        some = _rows_at(replace(rows, weight=work), index)
        if rows.paths:
            done = [integers[:, f : f + b.start] for f, b in zip(firsts, part, strict=True)]
            states = torch.stack([states_after(before.transpose(1, 2)) for before in done], 1)
            some = replace(some, paths=tuple(b.stop - b.start for b in part), states=states)
        integers[:, index] = solve(some)
        error = some.weight - some.dequantize(integers[:, index])
        errors = error.split([b.stop - b.start for b in part], 1)
        for upper, first, own, one in zip(carry.values(), firsts, part, errors, strict=True):
            rest = slice(first + own.stop, first + upper.shape[1])
            diagonal = upper[:, own, own].transpose(1, 2)
            carried = torch.linalg.solve_triangular(diagonal, one, upper=False)
            work[:, rest] -= upper[:, own, own.stop :].transpose(1, 2) @ carried
    return integers


def _rows_at(rows: Rows, index: Tensor) -> Rows:
    def some(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[:, index]

    return Rows(
        weight=rows.weight[:, index],
        scale=rows.scale[:, index],
        maximum=rows.maximum[:, index],
        factor=some(rows.factor),
        shrink=some(rows.shrink),
        cost=some(rows.cost),
    )

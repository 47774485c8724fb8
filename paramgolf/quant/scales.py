"""The precision of every matrix: its bits, and a scale for each of its rows.

Scales come from the grid. If sensitivities were measured, they are balanced by what errors cost.
Then they are rounded to few digits. From there on they are fixed: GPTQ and rounding only choose
integers.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from paramgolf.codec.dequantize import eighths, finer_factor
from paramgolf.model.config import ModelConfig
from paramgolf.quant.allocation import Bits, layer_bits
from paramgolf.quant.config import FINER_BITS, MOST_BITS, PERCENTILES, QuantizeConfig
from paramgolf.quant.grids import Rows, nearest, round_scales, row_scales, shorten
from paramgolf.quant.row_grid import RowGrid, grid_of
from paramgolf.quant.solved import Family, Precision

MOST_CHANGE = 16.0  # the largest factor by which balance may multiply or divide a step
LEAST_COST = 1e-30  # for rows whose errors cost nothing: the logarithm must be finite


def choose_precisions(
    families: list[Family],
    model: ModelConfig,
    config: QuantizeConfig,
    percentiles: tuple[float, ...] = PERCENTILES,
) -> dict[str, Precision]:
    """Return the precision of each parameter that belongs to a family.

    `percentiles` are the candidates among which a row of a percentile grid may choose.
    """
    bits = _bits(families, model, config)
    finer = column_steps(families) if config.column_steps else finer_columns(families, bits, config)
    scales = {
        name: _grid_scales(weight, family, bits[name], grid_of(name, config, percentiles))
        for family in families
        for name, weight in family.weights.items()
    }
    if config.balance:
        scales = _balance(scales, families, bits, finer, config.balance)
    return {
        name: Precision(bits[name], shorten(scale, config.scale_digits), finer.get(name))
        for name, scale in scales.items()
    }


def searches(config: QuantizeConfig) -> list[tuple[float, ...]]:
    """Return the sets of percentiles among which rows may choose; the best set's result is kept."""
    by_matrix = config.percentile_by == "matrix" and "percentile" in (
        config.grid,
        config.embedding_grid,
    )
    return [(p,) for p in PERCENTILES] if by_matrix else [PERCENTILES]


def rounded(name: str, weight_NRC: Tensor, bits: int, config: QuantizeConfig) -> Rows:
    """Return a parameter without a Hessian as rows to be rounded, each on its grid.

    Projections use the matrices' grid; that of a table or gate reaches its row's largest weight.
    """
    columns = torch.ones_like(weight_NRC[:, 0])
    candidates = []
    for percentiles in searches(config):
        grid = replace(grid_of(name, config, percentiles), bits=bits)
        scale = shorten(row_scales(weight_NRC, columns, grid), config.scale_digits)
        maximum = torch.full_like(scale, grid.maximum, dtype=torch.float32)
        candidates.append(Rows(weight_NRC, scale, maximum))
    if len(candidates) == 1:
        return candidates[0]
    errors = [(weight_NRC - rows.dequantize(nearest(rows))).square().mean() for rows in candidates]
    return candidates[int(torch.stack(errors).argmin())]


def finer_columns(families: list[Family], bits: Bits, config: QuantizeConfig) -> dict[str, Tensor]:
    """Return how much finer each group of columns is, int8 [layers, groups] by parameter.

    Of all groups of `group_columns` columns, the `finer_groups` with the largest sum over their
    columns j of sqrt(H_jj) times the mean |w_ij| are chosen (pg#1908). Matrices above 6 bits, or
    whose columns do not divide into groups, take no part; parameters without a choice are left out.
    """
    width, saliency, chosen = config.group_columns, [], {}
    for family in families:
        rms_NC = family.hessian.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        layers, columns = rms_NC.shape
        for name, weight in family.weights.items() if columns % width == 0 else ():
            chosen[name] = torch.zeros(layers, columns // width, dtype=torch.int8)
            salient_NC = rms_NC * weight.abs().mean(1)
            for layer, row in enumerate(salient_NC.view(layers, -1, width).sum(-1).tolist()):
                if bits[name][layer] + FINER_BITS <= MOST_BITS:
                    saliency += [(-value, name, layer, group) for group, value in enumerate(row)]
    for _, name, layer, group in sorted(saliency)[: config.finer_groups]:
        chosen[name][layer, group] = 8 * FINER_BITS
    return {name: halvings for name, halvings in chosen.items() if halvings.any()}


def column_steps(families: list[Family]) -> dict[str, Tensor]:
    """Return how much finer each column is, int8 [layers, columns] by parameter.

    The error that GPTQ leaves in column j is in proportion to step_j^2 / U_jj^2. With steps in
    proportion to U_jj it is the same in all columns. For a given product of the steps, and so for
    given bytes, its sum is then least (WaterSIC, arXiv 2603.04956).
    """
    chosen: dict[str, Tensor] = {}
    for family in families:
        logs_NC = family.pivot.double().log2()
        factors = (logs_NC - logs_NC.mean(1, keepdim=True)).exp2()
        finer = eighths(factors.masked_fill(family.factors.dead, 1.0))
        chosen |= {name: finer.clone() for name in family.weights}  # a file shares no storage
    return chosen


def _bits(families: list[Family], model: ModelConfig, config: QuantizeConfig) -> Bits:
    """Return the bits of each matrix of each parameter that belongs to a family."""
    traces: dict[str, list[float]] = {}
    for family in families:
        own = family.hessian.diagonal(dim1=1, dim2=2).sum(1).tolist()
        traces |= dict.fromkeys(family.weights, own)
    bits = layer_bits(traces, model, config)
    if config.embedding_bits is not None:
        bits["embedding"] = (config.embedding_bits,)
    return bits


def _grid_scales(
    weight_NRC: Tensor, family: Family, bits: tuple[int, ...], grid: RowGrid
) -> Tensor:
    """Return the scale of each row by its grid, float16 [N, R], matrices of equal bits together."""
    diagonal_NC = family.hessian.diagonal(dim1=1, dim2=2)
    scales = torch.empty(weight_NRC.shape[:2], dtype=torch.float16, device=weight_NRC.device)
    for width in sorted(set(bits)):
        layers = [layer for layer, of_layer in enumerate(bits) if of_layer == width]
        of_width = replace(grid, bits=width)
        scales[layers] = row_scales(weight_NRC[layers], diagonal_NC[layers], of_width)
    return scales


def _balance(
    scales: dict[str, Tensor],
    families: list[Family],
    bits: Bits,
    finer: dict[str, Tensor],
    share: float,
) -> dict[str, Tensor]:
    """Return balanced scales, float16 [N, R], none so small that its row would be cut off."""
    costs, sizes, least = {}, {}, {}
    for family in families:
        # What GPTQ leaves of a column's error: the columns after it make up for the rest, and the
        # least that is left of an error e in column j is e^2 / U_jj^2 (quant.gptq).
        left_N1C = family.pivot.double().pow(-2).unsqueeze(1)
        for name, weight in family.weights.items():
            factor_N1C = torch.ones_like(left_N1C)
            if name in finer:
                factor_N1C = finer_factor(finer[name].to(weight.device), weight.shape[2]).double()
            costs[name] = family.sensitivity[name] * (left_N1C * factor_N1C.square()).mean(2)
            sizes[name] = weight.shape[2]
            maximum = Precision(bits[name], scales[name]).maximum
            least[name] = (weight.abs() / factor_N1C.float().clamp_max(1)).amax(-1) / maximum
    balanced = balanced_scales(scales, costs, sizes, share)
    return {name: round_scales(scale.maximum(least[name])) for name, scale in balanced.items()}


def balanced_scales(
    scales: dict[str, Tensor], costs: dict[str, Tensor], sizes: dict[str, int], share: float
) -> dict[str, Tensor]:
    """Return scales under which every weight's error costs the loss the same, float32.

    A row of n weights with step s and cost c per unit of squared error costs the loss n c s^2 / 12,
    and its bytes fall by n bits where s doubles. Under a fixed sum of n log2(s) the sum of
    n c s^2 is least where c s^2 is the same for all (Lagrange): log2(s) = k - log2(c) / 2. The
    constant k is chosen so that the sum of n log2(s), and with it the bytes, stays.

    `costs` [N, R] and `scales` [N, R] are of rows of `sizes` weights. `share` 0..1 goes part of the
    way, in logarithms. No step leaves 1 / MOST_CHANGE to MOST_CHANGE times what it was.
    """
    logs = {name: scale.double().log2() for name, scale in scales.items()}
    wanted = {name: -0.5 * costs[name].double().clamp_min(LEAST_COST).log2() for name in scales}
    weights = sum(sizes[name] * logs[name].numel() for name in scales)
    surplus = sum(sizes[name] * float((logs[name] - wanted[name]).sum()) for name in scales)
    most = math.log2(MOST_CHANGE)
    return {
        name: (log + (share * (wanted[name] + surplus / weights - log)).clamp(-most, most))
        .exp2()
        .float()
        for name, log in logs.items()
    }

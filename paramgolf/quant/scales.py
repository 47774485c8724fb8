"""The precision of every matrix: its bits, and a scale for each of its rows.

Scales come from the grid, are balanced by what errors cost where that was measured, and are cut to
few digits; from there on they are fixed, and GPTQ or rounding only chooses integers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paramgolf.model.config import ModelConfig
from paramgolf.quant.allocation import Bits, finer_columns, layer_bits
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.grids import RowGrid, largest_integer, round_scales, row_scales, shorten
from paramgolf.quant.solved import Family, Precision

MLP = ("up", "down")
MOST_CHANGE = 16.0  # of a step, by which balance may divide or multiply it
LEAST_COST = 1e-30  # of a row that nothing reads: its logarithm must be finite


def choose_precisions(
    families: list[Family], model: ModelConfig, config: QuantizeConfig
) -> dict[str, Precision]:
    """Return the precision of each parameter that belongs to a family."""
    hessians = {family.name: family.hessian for family in families}
    weights = {name: weight for family in families for name, weight in family.weights.items()}
    bits = layer_bits(hessians, model, config)
    finer = finer_columns(weights, hessians, bits, config)
    scales = {
        name: _grid_scales(name, weight, family, bits[name], config)
        for family in families
        for name, weight in family.weights.items()
    }
    if config.balance:
        scales = _balance(scales, families, bits, config.balance)
    return {
        name: Precision(bits[name], shorten(scale, config.scale_digits), finer.get(name))
        for name, scale in scales.items()
    }


def grid_of(name: str, bits: int, config: QuantizeConfig) -> RowGrid:
    """Return the grid of a parameter that has a Hessian, at a number of bits."""
    if name == "embedding":
        clip = config.embedding_clip
    else:
        clip = config.mlp_clip if name in MLP else config.attention_clip
    return RowGrid(
        kind=config.grid,
        bits=bits,
        clip=clip,
        hessian_clip=config.hessian_clip,
        least_reach=config.least_reach,
    )


def _grid_scales(
    name: str, weight_NRC: Tensor, family: Family, bits: tuple[int, ...], config: QuantizeConfig
) -> Tensor:
    """Return the scale of each row by its grid, float16 [N, R], matrices of equal bits together."""
    diagonal_NC = family.hessian.diagonal(dim1=1, dim2=2)
    scales = torch.empty(weight_NRC.shape[:2], dtype=torch.float16, device=weight_NRC.device)
    for width in sorted(set(bits)):
        layers = [layer for layer, of_layer in enumerate(bits) if of_layer == width]
        grid = grid_of(name, width, config)
        scales[layers] = row_scales(weight_NRC[layers], diagonal_NC[layers], grid)
    return scales


def _balance(
    scales: dict[str, Tensor], families: list[Family], bits: Bits, share: float
) -> dict[str, Tensor]:
    """Return balanced scales, float16 [N, R], none so small that its row would be cut off."""
    costs, sizes, least = {}, {}, {}
    for family in families:
        # What GPTQ leaves of a column's error: the columns after it make up for the rest, and the
        # least that is left of an error e in column j is e^2 / U_jj^2 (quant.gptq).
        pivot = family.factors.upper.diagonal(dim1=1, dim2=2)
        left_N1 = pivot.double().pow(-2).mean(1, keepdim=True)
        for name, weight in family.weights.items():
            costs[name] = family.sensitivity[name] * left_N1
            sizes[name] = weight.shape[2]
            maximum = Precision(bits[name], scales[name]).maximum
            least[name] = weight.abs().amax(-1) / maximum
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


def rounded_precision(weight_NRC: Tensor, bits: int, config: QuantizeConfig) -> Precision:
    """Return the precision of a parameter without a Hessian: each row's largest weight fits."""
    reach = weight_NRC.abs().amax(-1).clamp_min(config.least_reach)
    scale = round_scales(reach / largest_integer(bits))
    return Precision((bits,) * len(weight_NRC), shorten(scale, config.scale_digits))

"""Which matrices get how many bits, and which groups of columns two more.

Bits go where errors act most: an error of a matrix is multiplied by its inputs, whose mean squared
size is the trace of its Hessian (pg#1204, pg#1285), or of one column, H_jj (pg#1908).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from paramgolf.model.config import ModelConfig
from paramgolf.model.shapes import MATRICES, PROJECTIONS, TABLES
from paramgolf.quant.config import FINER_BITS, MOST_BITS, QuantizeConfig
from paramgolf.quant.trained import FAMILIES

Bits = dict[str, tuple[int, ...]]  # of each layer of a parameter

GATES = ("head_gate",)
OUTER = (*(name for name in TABLES if name != "embedding"), *PROJECTIONS)  # outside the blocks


def rounded_bits(name: str, config: QuantizeConfig) -> int | None:
    """Return the bits of a parameter that is rounded without a Hessian; None: it stays float16."""
    if name in GATES:
        return config.gate_bits
    return config.table_bits if name in OUTER else None


def widest_bits(name: str, config: QuantizeConfig) -> int:
    """Return the bits of a parameter with a Hessian, the most of its layers."""
    return config.embedding_bits if name == "embedding" else config.matrix_bits


def layer_bits(hessians: dict[str, Tensor], model: ModelConfig, config: QuantizeConfig) -> Bits:
    """Return the bits of every matrix, by parameter and layer.

    With `high_bits_matrices` N, the N block matrices with the largest trace of their Hessian get
    `matrix_bits` and the others `low_bits`; with `recurrent_high` so do the matrices of layers that
    run more than once, above N where need be. Equal traces rank by family, parameter and layer.
    """
    bits = {
        name: (widest_bits(name, config),) * len(hessians[family])
        for family, names in FAMILIES.items()
        for name in names
    }
    if config.high_bits_matrices is None:
        return bits
    traces = dict(_traces(hessians))
    ranked = sorted(traces, key=lambda matrix: -traces[matrix])
    high = set(ranked[: config.high_bits_matrices])
    if config.recurrent_high:
        repeated = repeated_rows(model)
        high |= {(name, layer) for name, layer in ranked if layer in repeated}
    for name in MATRICES:
        bits[name] = tuple(
            config.matrix_bits if (name, layer) in high else config.low_bits
            for layer in range(len(bits[name]))
        )
    return bits


def repeated_rows(model: ModelConfig) -> set[int]:
    """Return the rows of the stacked parameters that belong to a repeated layer.

    The MLPs that untied repeats own come after those of the layers.
    """
    times = Counter(model.orders[-1])
    shared = {layer for layer, count in times.items() if count > 1}
    return shared | set(range(model.layers, model.layers + len(model.orders[-1])))


def finer_columns(
    weights: dict[str, Tensor], hessians: dict[str, Tensor], bits: Bits, config: QuantizeConfig
) -> dict[str, Tensor]:
    """Return the bits that each group of columns gets on top, int8 [layers, groups] by parameter.

    Of all groups of `group_columns` columns, the `finer_groups` with the largest sum over their
    columns j of sqrt(H_jj) times the mean |w_ij| are chosen (pg#1908). Matrices above 6 bits, or
    whose columns do not divide into groups, take no part; parameters without a choice are left out.
    """
    width, saliency = config.group_columns, []
    for family, names in FAMILIES.items():
        rms_NC = hessians[family].diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        for name in names if rms_NC.shape[1] % width == 0 else ():
            salient_NC = rms_NC * weights[name].abs().mean(1)
            for layer, row in enumerate(salient_NC.view(len(rms_NC), -1, width).sum(-1).tolist()):
                if bits[name][layer] + FINER_BITS <= MOST_BITS:
                    saliency += [(-value, name, layer, group) for group, value in enumerate(row)]
    chosen: dict[str, Tensor] = {}
    for _, name, layer, group in sorted(saliency)[: config.finer_groups]:
        layers, _, columns = weights[name].shape
        empty = torch.zeros(layers, columns // width, dtype=torch.int8)
        chosen.setdefault(name, empty)[layer, group] = FINER_BITS
    return chosen


def _traces(hessians: dict[str, Tensor]) -> Iterator[tuple[tuple[str, int], float]]:
    for family, names in FAMILIES.items():
        traces = hessians[family].diagonal(dim1=1, dim2=2).sum(1).tolist()
        for name in names:
            if name in MATRICES:
                yield from (((name, layer), trace) for layer, trace in enumerate(traces))

"""How many bits each parameter, and each matrix of a stack, gets; needs no torch.

Bits go where errors act most: what a matrix's error does to its outputs grows with its inputs,
whose mean squared size is the trace of its Hessian (pg#1204, pg#1285).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from paramgolf.model.config import ModelConfig
from paramgolf.model.shapes import MATRICES, MLP, TABLES
from paramgolf.quant.config import QuantizeConfig

Bits = dict[str, tuple[int, ...]]  # of each layer of a parameter


def rounded_bits(name: str, config: QuantizeConfig) -> int | None:
    """Return the bits of a parameter that is rounded without a Hessian; None: it stays float16."""
    widths = dict.fromkeys((name for name in TABLES if name != "embedding"), config.table_bits)
    widths |= {"head_gate": config.gate_bits, "bigram_proj": config.bigram_proj_bits}
    return widths.get(name)


def layer_bits(
    traces: Mapping[str, Sequence[float]], model: ModelConfig, config: QuantizeConfig
) -> Bits:
    """Return the bits of every block matrix, by parameter and layer.

    `traces` are those of their Hessians. With `high_bits_matrices` N, the N matrices with the
    largest trace get `matrix_bits` and the others `low_bits`; with `recurrent_high` the matrices of
    layers that run more than once come first among the N. Equal traces rank by parameter, in the
    order of MATRICES, and by layer.
    """
    if config.high_bits_matrices is None:
        widths = {name: config.mlp_bits if name in MLP else None for name in MATRICES}
        return {
            name: (width or config.matrix_bits,) * len(traces[name])
            for name, width in widths.items()
        }
    first = repeated_rows(model) if config.recurrent_high else frozenset()
    ranked = sorted(
        ((name, layer) for name in MATRICES for layer in range(len(traces[name]))),
        key=lambda matrix: (matrix[1] not in first, -traces[matrix[0]][matrix[1]]),
    )
    high = set(ranked[: config.high_bits_matrices])
    return {
        name: tuple(
            config.matrix_bits if (name, layer) in high else config.low_bits
            for layer in range(len(traces[name]))
        )
        for name in MATRICES
    }


def repeated_rows(model: ModelConfig) -> frozenset[int]:
    """Return the rows of the stacked parameters that belong to a repeated layer.

    The MLPs that untied repeats own come after those of the layers.
    """
    times = Counter(model.orders[-1])
    shared = {layer for layer, count in times.items() if count > 1}
    return frozenset(shared | set(range(model.layers, model.layers + len(model.orders[-1]))))

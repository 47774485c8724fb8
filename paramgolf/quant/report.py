"""What quantising cost, matrix by matrix: bits, errors, and the state of the Hessian."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paramgolf.quant.dequantize import dequantize
from paramgolf.quant.gptq import Factors, row_errors
from paramgolf.quant.grids import Grid


@dataclass(frozen=True, slots=True)
class Quantized:
    """A stack of matrices on its grid: integers float32 [N, R, C], scales float16 [N, R]."""

    name: str
    grid: Grid
    integers: Tensor
    scales: Tensor


def matrix_reports(
    quantized: Quantized, weight_NRC: Tensor, hessian_NCC: Tensor, factors: Factors
) -> list[dict[str, Any]]:
    """Return a report for each matrix of a stack.

    relative_error is ||E|| / ||W|| (Frobenius); output_error is tr(E H E^T) / tr(W H W^T), the
    share of the output's energy that quantising takes; entropy_bits is the order-0 entropy of the
    integers, bits a weight; condition and damping are those of the damped Hessian.
    """
    error = weight_NRC - dequantize(quantized.integers, quantized.scales)
    norms = [tensor.flatten(1).norm(dim=1).tolist() for tensor in (error, weight_NRC)]
    energies = [row_errors(tensor, hessian_NCC).sum(1).tolist() for tensor in (error, weight_NRC)]
    return [
        {
            "name": quantized.name,
            "layer": layer,
            "shape": list(weight_NRC.shape[1:]),
            "bits": quantized.grid.bits,
            "entropy_bits": entropy_bits(quantized.integers[layer]),
            "relative_error": _ratio(norms[0][layer], norms[1][layer]),
            "output_error": _ratio(energies[0][layer], energies[1][layer]),
            "damping": factors.damping[layer],
            "condition": factors.condition[layer],
            "dead_columns": int(factors.dead[layer].sum()),
        }
        for layer in range(len(weight_NRC))
    ]


def entropy_bits(integers: Tensor) -> float:
    """Return the empirical order-0 entropy of integers in -128..127, bits an integer."""
    counts = torch.bincount((integers.flatten() + 128).long(), minlength=256).double()
    chances = counts[counts > 0] / counts.sum()
    return float(-(chances * chances.log2()).sum()) + 0.0  # no -0.0


def summary(reports: list[dict[str, Any]]) -> dict[str, float]:
    """Return entropy bits a weight over all weights, and the mean relative error of the matrices.

    Matrices that no calibration token reached (all columns dead) are left out of the mean error:
    nothing reads them.
    """
    sizes = [math.prod(report["shape"]) for report in reports]
    bits = sum(size * report["entropy_bits"] for size, report in zip(sizes, reports, strict=True))
    used = [r["relative_error"] for r in reports if r["dead_columns"] < r["shape"][1]]
    return {
        "bits_per_weight": bits / sum(sizes),
        "mean_relative_error": sum(used) / len(used) if used else 0.0,
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0

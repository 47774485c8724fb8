"""What quantizing cost, matrix by matrix: bits, errors, and the state of the Hessian."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from paramgolf.quant.config import MOST_BITS
from paramgolf.quant.gptq import row_errors
from paramgolf.quant.solved import Solved

SMALLEST = 1e-300  # a diagonal that is 0 makes an energy of 0, not of 0 / 0


def matrix_reports(solved: Solved) -> list[dict[str, Any]]:
    """Return a report for each matrix of a stack.

    relative_error is ||E|| / ||W|| (Frobenius); output_error is tr(E H E^T) / tr(W H W^T), the
    share of the output's energy that quantizing takes, and error_trace its numerator; entropy_bits
    is the order-0 entropy of the integers in bits per weight, of which a trellis saves one;
    low_rank is the rank of the matrix's correction, which the errors include; condition and damping
    are those of the damped Hessian.
    """
    factors = solved.family.factors
    error = solved.weight - solved.dequantized
    pair = (error, solved.weight)
    norms = [tensor.flatten(1).norm(dim=1).tolist() for tensor in pair]
    # in units of the mean diagonal: the energy itself may overflow or underflow float32
    hessian = solved.family.hessian
    mean = hessian.diagonal(dim1=1, dim2=2).double().mean(1)
    unit = (hessian / mean.clamp_min(SMALLEST)[:, None, None]).float()
    energies = [(mean * row_errors(tensor, unit).sum(1).double()).tolist() for tensor in pair]
    return [
        {
            "name": solved.name,
            "layer": layer,
            "shape": list(solved.weight.shape[1:]),
            "bits": bits,
            "entropy_bits": max(0.0, entropy_bits(solved.integers[layer]) - solved.trellis),
            "relative_error": _ratio(norms[0][layer], norms[1][layer]),
            "output_error": _ratio(energies[0][layer], energies[1][layer]),
            "error_trace": energies[0][layer],
            "low_rank": _rank(solved, layer),
            "damping": factors.damping[layer],
            "condition": factors.condition[layer],
            "dead_columns": int(factors.dead[layer].sum()),
        }
        for layer, bits in enumerate(solved.bits)
    ]


def entropy_bits(integers: Tensor) -> float:
    """Return the empirical order-0 entropy of integers, int8, bits per integer."""
    counts = torch.bincount(integers.flatten().view(torch.uint8), minlength=256).double()
    probabilities = counts[counts > 0] / counts.sum()
    return float(-(probabilities * probabilities.log2()).sum()) + 0.0  # no -0.0


def summary(reports: list[dict[str, Any]]) -> dict[str, float]:
    """Return entropy bits per weight over all weights, and the mean relative error of the matrices.

    Matrices that no calibration token reached (all columns dead) are left out: nothing reads them,
    and they are stored as zeros.
    """
    used = [report for report in reports if report["dead_columns"] < report["shape"][1]]
    sizes = [math.prod(report["shape"]) for report in used]
    bits = sum(size * report["entropy_bits"] for size, report in zip(sizes, used, strict=True))
    errors = sum(report["relative_error"] for report in used)
    return {
        "bits_per_weight": bits / sum(sizes) if used else 0.0,
        "mean_relative_error": errors / len(used) if used else 0.0,
    }


def stored_bits(tensors: dict[str, Tensor], reports: list[dict[str, Any]]) -> dict[str, int]:
    """Return the width of each parameter's integers, the largest of its layers and groups.

    Of parameters without a report, which are rounded by their rows' largest, it is MOST_BITS.
    """
    bits: dict[str, int] = {}
    for report in reports:
        name = report["name"]
        finer = tensors.get(f"{name}.finer")
        extra = 0 if finer is None else max(0, -(-int(finer.max()) // 8))
        bits[name] = max(bits.get(name, 0), min(report["bits"] + extra, MOST_BITS))
    for name in tensors:
        if name.endswith(".integers"):
            bits.setdefault(name.removesuffix(".integers"), MOST_BITS)
    return bits


def _rank(solved: Solved, layer: int) -> int:
    left = solved.tensors.get(f"{solved.name}.{layer}.left")
    return 0 if left is None else left.shape[1]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0

"""The decoder's arithmetic: from integers and scales to weights.

All of it is elementwise, so that the weights have the same bits on every device: nothing is left to
the order in which a matrix multiplication adds.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

AT_ONCE = 2**20  # weights whose correction is computed in float64


def restore(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the float32 weights of a quantized parameter, from the tensors that are its parts.

    NAME.integers [..., R, C] times NAME.scales [..., R]; NAME.finer [layers, groups], where there
    is one, says how much finer the steps of each group of columns are; where there is
    NAME.LAYER.left, the layer's low-rank correction is added.
    """
    integers = tensors[f"{name}.integers"]
    weight = dequantize(integers, tensors[f"{name}.scales"])
    # a view, so that what is done to the stack is done to the weight
    stack = weight if weight.dim() == 3 else weight.unsqueeze(0)
    if f"{name}.finer" in tensors:
        stack.mul_(finer_factor(tensors[f"{name}.finer"], stack.shape[2]))
    for layer, matrix in enumerate(stack):
        if f"{name}.{layer}.left" in tensors:
            kinds = "left", "left_scales", "right", "right_scales"
            matrix.add_(low_rank(*(tensors[f"{name}.{layer}.{kind}"] for kind in kinds)))
    return weight


def dequantize(integers: Tensor, scales: Tensor) -> Tensor:
    """Return integers [..., R, C] times scales [..., R], float32.

    One IEEE multiplication per weight, of values that float32 holds exactly.
    """
    return integers.to(torch.float32, copy=True).mul_(scales.float().unsqueeze(-1))


def finer_factor(finer: Tensor, columns: int) -> Tensor:
    """Return what a step is multiplied by: float32 [layers, 1, columns].

    8 a + b, with b in 0..7, stands for (1 - b / 16) / 2^a: eighths of an octave, on a line between
    powers of 2. The products with integers and float16 scales are exact in float32.
    """
    factors = torch.tensor([(1 - b / 16) * 2.0**-a for a in range(-8, 8) for b in range(8)])
    chosen = factors.to(finer.device)[finer.long() + 64]
    return chosen.repeat_interleave(columns // finer.shape[1], 1).unsqueeze(1)


def eighths(factor: Tensor) -> Tensor:
    """Return the numbers whose `finer_factor` is nearest to factors in 2^-7..2^7, int8."""
    octaves = -factor.double().log2().clamp(-7, 7)
    whole = octaves.floor()
    nearest = 8 * whole + (16 * (1 - (whole - octaves).exp2())).round()
    return nearest.to(torch.int8)


def low_rank(left: Tensor, left_scales: Tensor, right: Tensor, right_scales: Tensor) -> Tensor:
    """Return (left * left_scales) @ (right * right_scales), float32 [R, C].

    Codes left [R, r], right [r, C]; scales [r] and [r, groups of columns]. A product of two float16
    times small integers is exact in float64, where the r products are added in their order.
    """
    grouped = right.double().view(*right_scales.shape, -1) * right_scales.double().unsqueeze(-1)
    rows, columns = left.double() * left_scales.double(), grouped.flatten(1)
    product = torch.empty(len(rows), columns.shape[1], device=left.device)
    # some rows at a time, for the float64 of a whole matrix are twice its memory, and more
    for start in range(0, len(rows), step := max(1, AT_ONCE // columns.shape[1])):
        some = rows[start : start + step]
        total = torch.zeros(len(some), columns.shape[1], dtype=torch.float64, device=left.device)
        # one after another, where a product of matrices would add in an order of its own
        for i in range(len(columns)):
            total += some[:, i : i + 1] * columns[i]
        product[start : start + step] = total
    return product

"""Matrices on their way through the quantizer: a family, its precision, the solved matrices.

Legend: N matrices of a stack, R rows (outputs), C columns (inputs), G groups of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paramgolf.codec.dequantize import finer_factor, restore
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.gptq import Factors, quantize_rows, solve
from paramgolf.quant.grids import Rows, nearest, round_scales
from paramgolf.quant.row_grid import largest_integer


@dataclass(frozen=True, slots=True)
class Family:
    """Matrices that read the same input, and their Hessians, on the device.

    Attributes:
        name: a key of trained.FAMILIES.
        weights: float32 [N, R, C] by parameter; their rows may differ in number.
        hessian: the mean of x x^T, float32 [N, C, C].
        factors: what GPTQ needs of it.
        sensitivity: [N, R] by parameter, see quant.sensitivity; empty where not asked for.
    """

    name: str
    weights: dict[str, Tensor]
    hessian: Tensor
    factors: Factors
    sensitivity: dict[str, Tensor]

    @property
    def pivot(self) -> Tensor:
        """The diagonal of U, float32 [N, C], columns in their original order."""
        sorted_NC = self.factors.upper.diagonal(dim1=1, dim2=2)
        return torch.empty_like(sorted_NC).scatter(1, self.factors.order, sorted_NC)

    @property
    def may_have_trellis(self) -> bool:
        """Whether a trellis may choose its integers.

        The coder predicts the embedding's rows from each other, which is worth as much as a trellis
        and would not go with one.
        """
        return self.name != "embedding"


@dataclass(frozen=True, slots=True)
class Precision:
    """How finely a parameter is quantized.

    Attributes:
        bits: of each matrix of the stack.
        scale: of each row, float16 [N, R].
        finer: how much finer the step of each group of columns is, int8 [N, G], see `finer_factor`;
            None: nowhere.
    """

    bits: tuple[int, ...]
    scale: Tensor
    finer: Tensor | None = None

    @property
    def maximum(self) -> Tensor:
        """The largest integer of each row, float32 [N, R]."""
        maxima = [float(largest_integer(bits)) for bits in self.bits]
        return torch.tensor(maxima, device=self.scale.device).unsqueeze(1).expand_as(self.scale)

    def halved(self) -> Precision:
        """Return the same reach on a grid of half the step, as a trellis needs it: a bit more."""
        bits = tuple(bits + 1 for bits in self.bits)
        return replace(self, bits=bits, scale=round_scales(self.scale.float() / 2))


@dataclass(frozen=True, slots=True)
class Solved:
    """A quantized parameter beside what it came from.

    Attributes:
        name: of the parameter.
        family: to which it belongs; its weights and Hessians.
        bits: of each matrix of the stack.
        tensors: the parts that are stored, by their full names.
        dequantized: what they decode to, float32 [N, R, C].
        trellis: whether one fixed each integer's parity, which then costs no bit.
    """

    name: str
    family: Family
    bits: tuple[int, ...]
    tensors: dict[str, Tensor]
    dequantized: Tensor
    trellis: bool

    @property
    def weight(self) -> Tensor:
        """The trained weights, float32 [N, R, C]."""
        return self.family.weights[self.name]

    @property
    def integers(self) -> Tensor:
        """The integers, int8 [N, R, C]."""
        return self.tensors[f"{self.name}.integers"]


def solve_family(
    family: Family, precisions: dict[str, Precision], config: QuantizeConfig
) -> list[Solved]:
    """Quantize the matrices of a family, the rows of all in one batched solve."""
    own = {name: precisions[name] for name in family.weights}
    sizes = [weight.shape[1] for weight in family.weights.values()]
    trellis = config.trellis and family.may_have_trellis
    if trellis:
        own = {name: precision.halved() for name, precision in own.items()}
    rows = Rows(
        weight=torch.cat(list(family.weights.values()), 1),
        scale=torch.cat([precision.scale for precision in own.values()], 1),
        maximum=torch.cat([precision.maximum for precision in own.values()], 1),
        factor=_finer_factors(family, own),
        paths=tuple(sizes) if trellis else (),
        cost=_costs(family),
    )
    match config.method_of(family.name), config.row_fallback:
        case "gptq", True:
            integers = quantize_rows(
                rows, family.hessian, family.factors, block_columns=config.block_columns
            )
        case "gptq", False:
            integers = solve(rows, family.factors, block_columns=config.block_columns)
        case _:
            integers = nearest(rows)
    parts = integers.to(torch.int8).split(sizes, dim=1)
    return [
        _solved(family, name, part.contiguous(), own[name], trellis=trellis)
        for name, part in zip(own, parts, strict=True)
    ]


def _costs(family: Family) -> Tensor | None:
    """Return what errors in the rows of a family cost, 1 in the mean, [N, R]; None: not known."""
    if not family.sensitivity:
        return None
    costs = torch.cat(list(family.sensitivity.values()), 1)
    return costs / costs.mean(1, keepdim=True).clamp_min(torch.finfo(costs.dtype).tiny)


def best_of(versions: Sequence[Solved]) -> Solved:
    """Return, matrix by matrix of a stack, the version that is nearest to the weights."""
    if len(versions) == 1:
        return versions[0]
    errors = [(v.weight - v.dequantized).square().mean((1, 2)) for v in versions]
    best_N = torch.stack(errors).argmin(0)
    layers = torch.arange(len(best_N), device=best_N.device)
    tensors = {
        key: torch.stack([v.tensors[key] for v in versions])[best_N, layers]
        for key in versions[0].tensors
    }
    return replace(versions[0], tensors=tensors, dequantized=restore(tensors, versions[0].name))


def _solved(
    family: Family, name: str, integers: Tensor, precision: Precision, *, trellis: bool
) -> Solved:
    tensors = {f"{name}.integers": integers, f"{name}.scales": precision.scale}
    if precision.finer is not None:
        tensors[f"{name}.finer"] = precision.finer.to(integers.device)
    return Solved(name, family, precision.bits, tensors, restore(tensors, name), trellis)


def _finer_factors(family: Family, precisions: dict[str, Precision]) -> Tensor | None:
    """Return by what each weight's step is multiplied, [N, R, C]; None: no step is finer."""
    if all(precision.finer is None for precision in precisions.values()):
        return None
    factors = []
    for name, weight in family.weights.items():
        finer = precisions[name].finer
        if finer is None:
            finer = torch.zeros(len(weight), 1, dtype=torch.int8)
        factors.append(finer_factor(finer.to(weight.device), weight.shape[2]).expand_as(weight))
    return torch.cat(factors, 1)

"""Quantise a trained model: float weights and Hessians in; integers, scales and a report out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from paramgolf.codec.dequantize import finer_factor, restore
from paramgolf.errors import ParamGolfError
from paramgolf.files import write_bytes, write_json
from paramgolf.progress import say
from paramgolf.quant.allocation import Bits, finer_columns, layer_bits
from paramgolf.quant.balance import SUFFIX, balanced_scales
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.families import MEMBERS, grid_of, rounded_bits, stacked
from paramgolf.quant.fit import artifact_parts, fit
from paramgolf.quant.gptq import Factors, factorise, nearest_by_trellis, quantize_rows
from paramgolf.quant.grids import nearest, round_scales, row_scales, shorten
from paramgolf.quant.lqer import add_corrections
from paramgolf.quant.report import Solved, matrix_reports, stored_bits, summary
from paramgolf.quant.trained import Trained, load_tensors, load_trained
from paramgolf.quant.trellis import segment_of

HESSIANS_PATH = Path("artifacts/calibrate/hessians.safetensors")
OUT_PATH = Path("artifacts/quantize")
METRICS_PATH = Path("artifacts/metrics/quantize.json")
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Family:
    """Matrices [N, R, C] that read the same input, and their Hessians, on the device.

    `sensitivity` [N, R] of each matrix is that of paramgolf.quant.sensitivity, where asked for.
    """

    name: str
    weights: dict[str, Tensor]
    hessian: Tensor
    factors: Factors
    sensitivity: dict[str, Tensor]

    @property
    def has_trellis(self) -> bool:
        """Whether a trellis may choose its integers; the embedding's predict each other better."""
        return self.name != "embedding"


def quantize(config: QuantizeConfig, device: torch.device) -> None:
    """Write the quantised model and its report (artifacts/quantize) and the stage's metrics."""
    trained = load_trained()
    hessians = load_tensors(HESSIANS_PATH, fix="make it with `dvc repro calibrate`")
    start = time.perf_counter()
    families = prepare(trained, hessians, config, device)
    search = None
    if config.fit_bytes is None:
        tensors, reports = solve_model(trained, families, config)
    else:
        measure = artifact_parts(trained, config)
        found = fit(config, lambda trial: solve_model(trained, families, trial), measure)
        (tensors, reports), search = found
    seconds = time.perf_counter() - start
    write_bytes(OUT_PATH / "model.safetensors", safetensors.torch.save(tensors))
    bits = stored_bits(tensors, reports)
    write_json(OUT_PATH / "config.json", {**trained.config, "quantize": {"bits": bits}})
    totals = summary(reports)
    report = {"schema": SCHEMA, "tensors": reports, "fit": search, **totals}
    write_json(OUT_PATH / "report.json", report)
    write_json(METRICS_PATH, {"seconds": seconds, **totals})


def quantize_model(
    trained: Trained, hessians: dict[str, Tensor], config: QuantizeConfig, device: torch.device
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the tensors to store and one report a matrix.

    A quantised NAME is stored as NAME.integers (int8, the parameter's shape) and NAME.scales
    (float16, one a row), with NAME.finer and NAME.LAYER.left, .right and their scales where there
    are finer groups and corrections (see `restore`); every other parameter as float16. All are on
    the CPU.
    """
    return solve_model(trained, prepare(trained, hessians, config, device), config)


def prepare(
    trained: Trained, hessians: dict[str, Tensor], config: QuantizeConfig, device: torch.device
) -> list[Family]:
    """Put weights and Hessians on the device and factorise: what clips and bits do not change."""
    families = []
    for family, names in MEMBERS.items():
        for name in names:
            _refuse_non_finite(name, trained.state[name])
        weights = {name: stacked(trained.state[name]).to(device) for name in names}
        hessian = _hessian(hessians, family, weights[names[0]]).to(device)
        say(f"quantize: {family}, {len(hessian)} x {sum(w.shape[1] for w in weights.values())}")
        factors = factorise(
            hessian, damping=config.damping, act_order=config.act_order, family=family
        )
        sensitivity = {}
        if config.balance:
            sensitivity = {name: _sensitivity(hessians, name, device) for name in names}
        families.append(Family(family, weights, hessian, factors, sensitivity))
    return families


def solve_model(
    trained: Trained, families: list[Family], config: QuantizeConfig
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return what `quantize_model` returns, from what `prepare` made."""
    hessians = {family.name: family.hessian for family in families}
    weights = {name: w for family in families for name, w in family.weights.items()}
    bits = layer_bits(hessians, trained.model, config)
    finer = finer_columns(weights, hessians, bits, config)
    scales = _scales(families, bits, config)
    solved = [
        one
        for family in families
        for one in _solve_family(family, bits, scales, finer=finer, config=config)
    ]
    add_corrections(solved, config)
    tensors: dict[str, Tensor] = {}
    for name, tensor in trained.state.items():
        if name not in weights:
            tensors |= _without_hessian(name, tensor, config)
    for one in solved:
        shape = trained.state[one.name].shape
        parts = {name: part.cpu().contiguous() for name, part in one.tensors.items()}
        for kind, size in (("integers", shape), ("scales", shape[:-1])):
            parts[f"{one.name}.{kind}"] = parts[f"{one.name}.{kind}"].view(size)
        tensors |= parts
    return tensors, [report for one in solved for report in matrix_reports(one)]


def _solve_family(
    family: Family,
    bits: Bits,
    all_scales: dict[str, Tensor],
    *,
    finer: dict[str, Tensor],
    config: QuantizeConfig,
) -> list[Solved]:
    """Quantise matrices [N, R, C] that share a Hessian, the rows of all in one batched solve."""
    weights, hessian = family.weights, family.hessian
    scales, segment = [all_scales[name] for name in weights], 0
    if config.trellis and family.has_trellis:
        segment = segment_of(*(w.shape[1] for w in weights.values()))
        scales = [round_scales(scale.float() / 2) for scale in scales]
        bits = {name: tuple(width + 1 for width in bits[name]) for name in weights}
    maxima = [_maxima(w, bits[name]) for name, w in weights.items()]
    weight, scale, maximum = (
        torch.cat(list(parts), 1) for parts in (weights.values(), scales, maxima)
    )
    factor = _factor(weights, finer)
    if _method(family.name, config) == "gptq":
        integers = quantize_rows(
            weight,
            scale,
            maximum,
            hessian,
            family.factors,
            block_columns=config.block_columns,
            factor_NRC=factor,
            segment=segment,
        )
    elif segment:
        integers = nearest_by_trellis(weight, scale, maximum, segment)
    else:
        integers = nearest(weight, scale, maximum, factor)
    parts = integers.to(torch.int8).split([w.shape[1] for w in weights.values()], dim=1)
    solved = []
    for name, part, scale in zip(weights, parts, scales, strict=True):
        tensors = {f"{name}.integers": part.contiguous(), f"{name}.scales": scale}
        if name in finer:
            tensors[f"{name}.finer"] = finer[name].to(part.device)
        found = restore(tensors, name)
        solved.append(
            Solved(
                name,
                bits[name],
                tensors,
                weights[name],
                found,
                hessian,
                family.factors,
                trellis=segment > 0,
            )
        )
    return solved


def _method(family: str, config: QuantizeConfig) -> str:
    chosen = config.embedding_method if family == "embedding" else None
    return chosen or config.method


def _scales(families: list[Family], bits: Bits, config: QuantizeConfig) -> dict[str, Tensor]:
    """Return the scale of each row of each parameter, float16 [N, R]."""
    scales, costs, sizes = {}, {}, {}
    for family in families:
        diagonal = family.hessian.diagonal(dim1=1, dim2=2)
        # what GPTQ leaves of a column's error, the columns after it making up for the rest
        left = family.factors.upper.diagonal(dim1=1, dim2=2).double().pow(-2).mean(1, keepdim=True)
        for name, weight in family.weights.items():
            scales[name] = _grid_scales(name, weight, diagonal, bits[name], config)
            sizes[name] = weight.shape[2]
            if config.balance:
                costs[name] = family.sensitivity[name] * left
    if config.balance:
        balanced = balanced_scales(scales, costs, sizes, config.balance)
        weights = {name: w for family in families for name, w in family.weights.items()}
        # a step must not become so fine that its row is cut off
        least = {name: w.abs().amax(-1) / _maxima(w, bits[name]) for name, w in weights.items()}
        scales = {name: round_scales(one.maximum(least[name])) for name, one in balanced.items()}
    return {name: shorten(scale, config.scale_digits) for name, scale in scales.items()}


def _grid_scales(
    name: str,
    weight_NRC: Tensor,
    diagonal_NC: Tensor,
    bits: tuple[int, ...],
    config: QuantizeConfig,
) -> Tensor:
    """Return the scale of each row by its grid, float16 [N, R], layers of equal bits together."""
    scales = torch.empty(weight_NRC.shape[:2], dtype=torch.float16, device=weight_NRC.device)
    for width in sorted(set(bits)):
        layers = [layer for layer, of_layer in enumerate(bits) if of_layer == width]
        grid = replace(grid_of(name, config), bits=width)
        scales[layers] = row_scales(weight_NRC[layers], diagonal_NC[layers], grid)
    return scales


def _maxima(weight_NRC: Tensor, bits: tuple[int, ...]) -> Tensor:
    """Return the largest integer of each row, float32 [N, R]."""
    of_layers = torch.tensor([2.0 ** (b - 1) - 1 for b in bits], device=weight_NRC.device)
    return of_layers.unsqueeze(1).expand(weight_NRC.shape[:2])


def _factor(weights: dict[str, Tensor], finer: dict[str, Tensor]) -> Tensor | None:
    """Return by what each weight's step is multiplied, [N, R, C]; None: no step is finer."""
    if not any(name in finer for name in weights):
        return None
    factors = []
    for name, weight in weights.items():
        halvings = finer.get(name, torch.zeros(len(weight), 1, dtype=torch.int8))
        factors.append(finer_factor(halvings.to(weight.device), weight.shape[2]).expand_as(weight))
    return torch.cat(factors, 1)


def _without_hessian(name: str, tensor: Tensor, config: QuantizeConfig) -> dict[str, Tensor]:
    """Return a parameter that no Hessian belongs to: rounded by its rows' largest, or float16."""
    _refuse_non_finite(name, tensor)
    bits = rounded_bits(name, config)
    if bits is None:
        return {name: shorten(_to_half(name, tensor), config.vector_digits)}
    weight = tensor.reshape(1, -1, tensor.shape[-1])
    maxima = _maxima(weight, (bits,))
    reach = weight.abs().amax(-1).clamp_min(config.least_reach)
    scale = shorten(round_scales(reach / maxima), config.scale_digits)
    integers = nearest(weight, scale, maxima).to(torch.int8)
    return {
        f"{name}.integers": integers.view(tensor.shape),
        f"{name}.scales": scale.view(tensor.shape[:-1]),
    }


def _hessian(hessians: dict[str, Tensor], family: str, weight_NRC: Tensor) -> Tensor:
    layers, _, columns = weight_NRC.shape
    expected = (layers, columns, columns)
    found = tuple(hessians[family].shape) if family in hessians else "none"
    if found != expected:
        raise ParamGolfError(
            "the Hessians do not fit the model",
            where=f"{HESSIANS_PATH}, {family}",
            expected=expected,
            found=found,
            fix="make them again: `dvc repro -f -s calibrate`",
        )
    return hessians[family]


def _sensitivity(hessians: dict[str, Tensor], name: str, device: torch.device) -> Tensor:
    if name + SUFFIX not in hessians:
        raise ParamGolfError(
            "the Hessians hold no sensitivities, which quantize.balance needs",
            where=HESSIANS_PATH,
            fix="set calibrate.sensitivity_sequences, and `dvc repro calibrate`",
        )
    return hessians[name + SUFFIX].to(device)


def _refuse_non_finite(name: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise ParamGolfError(
            "a trained parameter holds values that are not finite", where=name, fix="train again"
        )


def _to_half(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half()
    if not half.isfinite().all():
        raise ParamGolfError(
            "a parameter is too large for float16",
            where=name,
            found=float(tensor.abs().max()),
            fix="train with more weight decay or a smaller learning rate",
        )
    return half

"""Quantise a trained model: float weights and Hessians in; integers, scales and a report out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from paramgolf.errors import ParamGolfError
from paramgolf.files import write_bytes, write_json
from paramgolf.progress import say
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.families import MEMBERS, QUANTIZED, grid_of, stacked
from paramgolf.quant.gptq import Factors, factorise, quantize_rows
from paramgolf.quant.grids import nearest, row_scales
from paramgolf.quant.report import Quantized, matrix_reports, summary
from paramgolf.quant.trained import Trained, load_tensors, load_trained
from paramgolf.runtime import synchronize

HESSIANS_PATH = Path("artifacts/calibrate/hessians.safetensors")
OUT_PATH = Path("artifacts/quantize")
METRICS_PATH = Path("artifacts/metrics/quantize.json")
SCHEMA = 1


def quantize(config: QuantizeConfig, device: torch.device) -> None:
    """Write the quantised model and its report (artifacts/quantize) and the stage's metrics."""
    trained = load_trained()
    hessians = load_tensors(HESSIANS_PATH, fix="make it with `dvc repro calibrate`")
    start = time.perf_counter()
    tensors, reports = quantize_model(trained, hessians, config, device)
    seconds = time.perf_counter() - start
    write_bytes(OUT_PATH / "model.safetensors", safetensors.torch.save(tensors))
    bits = {name: grid_of(name, config).bits for name in QUANTIZED}
    write_json(OUT_PATH / "config.json", {**trained.config, "quantize": {"bits": bits}})
    totals = summary(reports)
    write_json(OUT_PATH / "report.json", {"schema": SCHEMA, "tensors": reports, **totals})
    write_json(METRICS_PATH, {"seconds": seconds, **totals})


def quantize_model(
    trained: Trained, hessians: dict[str, Tensor], config: QuantizeConfig, device: torch.device
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the tensors to store and one report a matrix.

    A quantised NAME is stored as NAME.integers (int8, the parameter's shape) and NAME.scales
    (float16, one a row); every other parameter as float16. All are on the CPU.
    """
    tensors = {}
    for name, tensor in trained.state.items():
        _refuse_non_finite(name, tensor)
        if name not in QUANTIZED:
            tensors[name] = _to_half(name, tensor)
    reports = []
    for family, names in MEMBERS.items():
        weights = {name: stacked(trained.state[name]).to(device) for name in names}
        hessian = _hessian(hessians, family, weights[names[0]]).to(device)
        say(f"quantize: {family}, {len(hessian)} x {sum(w.shape[1] for w in weights.values())}")
        factors = factorise(
            hessian, damping=config.damping, act_order=config.act_order, family=family
        )
        for quantized in _quantize_family(weights, hessian, factors, config):
            name, shape = quantized.name, trained.state[quantized.name].shape
            reports += matrix_reports(quantized, weights[name], hessian, factors)
            integers = quantized.integers.to(torch.int8).reshape(shape)
            tensors[f"{name}.integers"] = integers.cpu().contiguous()
            tensors[f"{name}.scales"] = quantized.scales.reshape(shape[:-1]).cpu()
        synchronize(device)
    return tensors, reports


def _quantize_family(
    weights: dict[str, Tensor], hessian_NCC: Tensor, factors: Factors, config: QuantizeConfig
) -> list[Quantized]:
    """Quantise matrices [N, R, C] that share a Hessian, the rows of all in one batched solve."""
    diagonal = hessian_NCC.diagonal(dim1=1, dim2=2)
    grids = {name: grid_of(name, config) for name in weights}
    scales = {name: row_scales(w, diagonal, grids[name]) for name, w in weights.items()}
    weight, scale = torch.cat(list(weights.values()), 1), torch.cat(list(scales.values()), 1)
    maxima = [torch.full_like(s, grids[n].maximum).float() for n, s in scales.items()]
    maximum = torch.cat(maxima, 1)
    if config.method == "nearest":
        integers = nearest(weight, scale, maximum)
    else:
        integers = quantize_rows(
            weight, scale, maximum, hessian_NCC, factors, block_columns=config.block_columns
        )
    parts = integers.split([scale.shape[1] for scale in scales.values()], dim=1)
    return [
        Quantized(name, grids[name], part, scales[name])
        for name, part in zip(weights, parts, strict=True)
    ]


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

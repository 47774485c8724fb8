"""The stage quantize: float weights and Hessians in; integers, scales and a report out.

The steps for a matrix: `prepare` puts it and its Hessian on the device and factorizes the Hessian;
quant.scales chooses its bits and scales; quant.solved its integers, by quant.gptq; quant.lqer
corrects the matrices with the largest error; quant.adjust trains scales; quant.report measures the
error.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from paramgolf.errors import ParamGolfError
from paramgolf.files import write_bytes, write_json
from paramgolf.model.head import Mask
from paramgolf.progress import say
from paramgolf.quant.adjust import adjust
from paramgolf.quant.allocation import rounded_bits
from paramgolf.quant.calibrate import HESSIANS_PATH
from paramgolf.quant.config import QuantizeConfig
from paramgolf.quant.fit import artifact_parts, fit
from paramgolf.quant.gptq import factorize
from paramgolf.quant.grids import nearest, shorten
from paramgolf.quant.health import add_health
from paramgolf.quant.lqer import add_corrections
from paramgolf.quant.report import matrix_reports, stored_bits, summary
from paramgolf.quant.scales import rounded
from paramgolf.quant.sharing import FamilySolver
from paramgolf.quant.solved import Family, Solved
from paramgolf.quant.trained import (
    FAMILIES,
    MASK,
    SENSITIVITY,
    TEXTS,
    Trained,
    load_tensors,
    load_trained,
    stacked,
)
from paramgolf.runtime import Runtime

OUT_PATH = Path("artifacts/quantize")
METRICS_PATH = Path("artifacts/metrics/quantize.json")
SCHEMA = 1
AGAIN = "make them again: `dvc repro -f -s calibrate`"


def quantize(config: QuantizeConfig, runtime: Runtime) -> None:
    """Write the quantized model and its report (artifacts/quantize) and the stage's metrics."""
    trained = load_trained()
    hessians = load_tensors(HESSIANS_PATH, fix="make it with `dvc repro calibrate`")
    start, texts = time.perf_counter(), _texts(hessians, trained.vocab_size)
    if trained.token_mask:
        trained = replace(trained, mask=_mask(hessians, trained.vocab_size))
    families = prepare(trained, hessians, config, runtime.device, show=runtime.is_main)
    solve = FamilySolver(families, trained.model, runtime)
    if not runtime.is_main:
        solve.serve()
        if config.adjust_steps:
            adjust(trained, {}, texts, config, runtime)
        return
    search, measure = None, artifact_parts(trained, config)
    if config.fit_bytes is None:
        tensors, reports = assemble(trained, solve(config), config)
    else:
        found = fit(config, lambda trial: assemble(trained, solve(trial), trial), measure)
        (tensors, reports), search = found
    solve.end()
    adjust_start = time.perf_counter()
    if config.adjust_steps:
        tensors = adjust(trained, tensors, texts, config, runtime)
    end = time.perf_counter()
    if search is not None and config.adjust_steps:
        _measure_again(search, sum(part.bytes for part in measure((tensors, reports))))
    divergence = add_health(trained, tensors, reports, texts, runtime)
    write_bytes(OUT_PATH / "model.safetensors", safetensors.torch.save(tensors))
    bits = stored_bits(tensors, reports)
    write_json(OUT_PATH / "config.json", {**trained.config, "quantize": {"bits": bits}})
    totals = summary(reports)
    report = {"schema": SCHEMA, "tensors": reports, "fit": search, **totals}
    write_json(OUT_PATH / "report.json", report)
    seconds = {"seconds": end - start, "adjust_seconds": end - adjust_start}
    write_json(METRICS_PATH, {**seconds, "divergence": divergence, **totals})


def _measure_again(search: dict[str, Any], total: int) -> None:
    """Put the bytes after the adjustment into the record of the search; say if they no longer fit.

    Integers have not changed, so only the trained tensors are compressed again.
    """
    search["bytes_total"] = total
    if total > search["limit_bytes"]:
        more = total - search["limit_bytes"]
        say(f"quantize: scales that learned make the artifact {more:,} bytes larger than fit_bytes")


def prepare(
    trained: Trained,
    hessians: dict[str, Tensor],
    config: QuantizeConfig,
    device: torch.device,
    *,
    show: bool = True,
) -> list[Family]:
    """Put weights and Hessians on the device and factorize these, once for all clips and bits."""
    families = []
    for family, names in FAMILIES.items():
        if family == "embedding" and config.embedding_bits is None:
            continue
        for name in names:
            _refuse_non_finite(name, trained.state[name])
        weights = {name: stacked(trained.state[name]).to(device) for name in names}
        layers, _, columns = weights[names[0]].shape
        hessian = _checked(hessians, family, torch.float32, (layers, columns, columns)).to(device)
        if show:
            rows = sum(weight.shape[1] for weight in weights.values())
            say(f"quantize: {family}, {len(hessian)} x {rows}")
        factors = factorize(
            hessian,
            damping=config.damping,
            act_order=config.act_order,
            family=family,
            dead_inputs=config.dead_inputs,
        )
        sensitivity = {}
        if config.balance:
            sensitivity = {
                name: _sensitivity(hessians, name, tuple(weights[name].shape[:2]), device)
                for name in names
            }
        families.append(Family(family, weights, hessian, factors, sensitivity))
    return families


def solve_model(
    trained: Trained, families: list[Family], config: QuantizeConfig
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return what `assemble` returns, from what `prepare` made, in this process alone."""
    solve = FamilySolver(families, trained.model, Runtime(0, 1, families[0].hessian.device))
    return assemble(trained, solve(config), config)


def assemble(
    trained: Trained, solved: list[Solved], config: QuantizeConfig
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the tensors to store and one report per matrix, of matrices that are solved.

    A quantized NAME is stored as NAME.integers (int8, the parameter's shape) and NAME.scales
    (float16, one per row), with NAME.finer and NAME.LAYER.left, .right and their scales where there
    are finer groups and corrections (see `restore`); every other parameter as float16. All are on
    the CPU.
    """
    add_corrections(solved, config)
    tensors: dict[str, Tensor] = {}
    names = {one.name for one in solved}
    for name, tensor in trained.state.items():
        if name not in names:
            tensors |= _without_hessian(name, tensor, config)
    for one in solved:
        shape = trained.state[one.name].shape
        parts = {name: part.cpu().contiguous() for name, part in one.tensors.items()}
        for kind, size in (("integers", shape), ("scales", shape[:-1])):
            parts[f"{one.name}.{kind}"] = parts[f"{one.name}.{kind}"].view(size)
        tensors |= parts
    return tensors, [report for one in solved for report in matrix_reports(one)]


def _without_hessian(name: str, tensor: Tensor, config: QuantizeConfig) -> dict[str, Tensor]:
    """Return a parameter that no Hessian belongs to: rounded by its rows' largest, or float16."""
    _refuse_non_finite(name, tensor)
    bits = rounded_bits(name, config)
    if bits is None:
        return {name: shorten(_to_half(name, tensor), config.vector_digits)}
    rows = rounded(name, tensor.reshape(1, -1, tensor.shape[-1]), bits, config)
    return {
        f"{name}.integers": nearest(rows).to(torch.int8).view(tensor.shape),
        f"{name}.scales": rows.scale.view(tensor.shape[:-1]),
    }


def _checked(
    hessians: dict[str, Tensor], name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> Tensor:
    """Return one of calibrate's tensors, which must have this dtype and shape; 0 is any size."""
    tensor = hessians.get(name)
    sizes = () if tensor is None else tuple(tensor.shape)
    alike = len(sizes) == len(shape) and all(a in (0, b) for a, b in zip(shape, sizes, strict=True))
    if tensor is None or tensor.dtype != dtype or not alike or not tensor.numel():
        raise ParamGolfError(
            "the Hessians do not fit the model",
            where=f"{HESSIANS_PATH}, {name}",
            expected=f"{dtype}, {shape}",
            found="none" if tensor is None else f"{tensor.dtype}, {sizes}",
            fix=AGAIN,
        )
    return tensor


def _texts(hessians: dict[str, Tensor], vocab_size: int) -> Tensor:
    """Return the texts to adjust on and to try the quantized network on, int64 [N, T]."""
    texts = _checked(hessians, TEXTS, torch.int32, (0, 0)).long()
    if not 0 <= int(texts.min()) <= int(texts.max()) < vocab_size:
        raise ParamGolfError(
            "the texts are of another vocabulary than the model",
            where=f"{HESSIANS_PATH}, {TEXTS}",
            expected=f"tokens below {vocab_size}",
            found=f"{int(texts.min())} to {int(texts.max())}",
            fix=AGAIN,
        )
    return texts


def _mask(hessians: dict[str, Tensor], vocab_size: int) -> Mask:
    """Return the mask that the network was trained under."""
    shape = vocab_size + 1, -(-vocab_size // 32)
    words = _checked(hessians, f"{MASK}words", torch.int32, shape)
    escape, marks = hessians[f"{MASK}escape"], hessians[f"{MASK}marks"]
    return Mask(words, int(escape), marks)


def _sensitivity(
    hessians: dict[str, Tensor], name: str, rows: tuple[int, ...], device: torch.device
) -> Tensor:
    if name + SENSITIVITY not in hessians:
        raise ParamGolfError(
            "the Hessians hold no sensitivities, which quantize.balance needs",
            where=HESSIANS_PATH,
            fix="set calibrate.sensitivity_sequences, and `dvc repro calibrate`",
        )
    found = _checked(hessians, name + SENSITIVITY, torch.float32, rows)
    _refuse_non_finite(f"{HESSIANS_PATH}, {name}", found)
    return found.to(device)


def _refuse_non_finite(where: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise ParamGolfError("values that are not finite", where=where, fix="train again")


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

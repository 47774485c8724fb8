"""All of an estimate as one plain dictionary, for the table and for --json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from paramgolf.estimate.devices import DEVICES
from paramgolf.estimate.evaluation import scored_per_second
from paramgolf.estimate.memory import training_memory
from paramgolf.estimate.size import ModelBytes, trained_deviations
from paramgolf.estimate.speed import Machine, Stretch, stretches
from paramgolf.model.flops import TRAINING_FACTOR, training_flops
from paramgolf.model.shapes import shapes
from paramgolf.recipes import Params

SCHEMA = 1
# of the model's bytes; what the estimate is tested to, the allocation and deviations given
BYTES_TOLERANCE = 0.015


def estimate(params: Params, *, code_bytes: int, device: str, count: int) -> dict[str, Any]:
    """Return what `params` will cost on `count` devices of kind `device` (a key of DEVICES).

    Sections: parameters (by name), flops_per_token (by phase of recurrence), artifact, memory (of
    one device), run, and evaluations (tokens scored a second; null: none). Bytes, seconds and
    operations are plain numbers.
    """
    model, vocab_size = params.model, params.tokenizer.vocab_size
    machine = Machine(device=DEVICES[device], count=count)
    parts = stretches(model, params.train, vocab_size, machine)
    sizes = {name: math.prod(shape) for name, shape in shapes(model, vocab_size).items()}
    return {
        "schema": SCHEMA,
        "device": device,
        "devices": count,
        "parameters": {**sizes, "total": sum(sizes.values())},
        "flops_per_token": _flops(params, parts),
        "artifact": _artifact(params, code_bytes),
        "memory": _memory(params, machine),
        "run": _run(params, machine, parts),
        "evaluations": {
            "eval_sliding": scored_per_second(model, vocab_size, params.eval_sliding, machine),
            "eval_ttt": scored_per_second(model, vocab_size, params.eval_ttt, machine),
        },
    }


def _flops(params: Params, parts: Sequence[Stretch]) -> list[dict[str, Any]]:
    """Return the operations of a token in each phase, as it begins."""
    lengths = {part.phase: part.sequence_length for part in reversed(parts)}
    last = params.train.batch_sizes[-1].sequence_length  # of a phase that training never reaches
    phases = []
    for phase, order in enumerate(params.model.orders):
        at = params.model.recurrence[phase - 1].at if phase else 0
        length = lengths.get(phase, last)
        flops = training_flops(params.model, params.tokenizer.vocab_size, order, length)
        whole = {"forward": flops / TRAINING_FACTOR, "training": flops}
        phases.append({"at": at, "passes": len(order), **whole})
    return phases


def _artifact(params: Params, code_bytes: int) -> dict[str, Any]:
    model, vocab_size, package = params.model, params.tokenizer.vocab_size, params.package
    expected, factor = ModelBytes(
        model=model,
        vocab_size=vocab_size,
        quantize=params.quantize,
        package=package,
        deviations=trained_deviations(model, vocab_size, params.train),
    ).fitted(code_bytes)
    parts = expected.parts()
    integers = [part for part in parts if part.bits is not None]
    weights = sum(part.weights for part in integers)
    bytes_model = sum(part.bytes for part in parts)
    total, limit = bytes_model + code_bytes, package.limit_bytes
    tolerance = round(BYTES_TOLERANCE * bytes_model)
    tolerance += expected.allocation_uncertainty() + expected.deviation_uncertainty()
    return {
        "parts": [dataclasses.asdict(part) for part in parts],
        "clip_factor": factor,
        "bits_per_weight": 8 * sum(part.bytes for part in integers) / weights,
        "bytes_model": bytes_model,
        "bytes_code": code_bytes,
        "bytes_total": total,
        "limit_bytes": limit,
        "headroom_bytes": limit - total,
        "tolerance_bytes": tolerance,
        "fits": _fits(limit - total, 0 if _is_fitted(params, total) else tolerance),
    }


def _is_fitted(params: Params, total: int) -> bool:
    """Tell whether quantize measures real bytes against the limit, and can reach it."""
    wanted = params.quantize.fit_bytes
    return wanted is not None and total <= wanted <= params.package.limit_bytes


def _fits(headroom: int, tolerance: int) -> str:
    if abs(headroom) < tolerance:
        return "unsure"
    return "yes" if headroom >= 0 else "no"


def _memory(params: Params, machine: Machine) -> dict[str, Any]:
    memory = training_memory(params.model, params.train, params.tokenizer.vocab_size, machine)
    capacity = machine.device.memory_bytes
    return {
        **dataclasses.asdict(memory),
        "total": memory.total,
        "capacity": capacity,
        "fits": None if capacity is None else memory.total <= capacity,
    }


def _run(params: Params, machine: Machine, parts: Sequence[Stretch]) -> dict[str, Any]:
    model, vocab_size = params.model, params.tokenizer.vocab_size
    seconds, tokens = sum(part.seconds for part in parts), sum(part.tokens for part in parts)
    flops = sum(
        part.tokens
        * training_flops(model, vocab_size, model.orders[part.phase], part.sequence_length)
        for part in parts
    )
    return {
        "steps": sum(part.steps for part in parts),
        "tokens": tokens,
        "train_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        # that of the device, unless steps are as short as they can be, or FP8 makes them shorter
        "utilisation": flops / seconds / (machine.device.peak_flops * machine.count),
        "stretches": [dataclasses.asdict(part) for part in parts],
    }

"""Estimate what a run will cost before any GPU is used: parameters, FLOPs, bytes, memory, time.

The run is that of params.yaml, or of a recipe that is named, with changes. Nothing is trained or
written. Bytes follow from the grids by the entropy of Gaussian rows and are right to 1.5 %; the
code is packed for real. Seconds follow from FLOPs and the utilisation that published runs reached
on that GPU (paramgolf/estimate/devices.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from paramgolf.arguments import add_recipe, amount, count
from paramgolf.estimate.devices import DEVICES, GIB
from paramgolf.estimate.speed import dollars
from paramgolf.estimate.summary import estimate
from paramgolf.packing.code import frozen_params, pack_code
from paramgolf.recipes import Params, check, chosen
from paramgolf.verify.config import CONTEST_GPUS

EXAMPLE = """example:
  paramgolf estimate --gpu cpu
  paramgolf estimate train.steps=500 --gpu cpu
  paramgolf estimate pr1493 quantize.mlp_clip=12.0 --gpu H100 --gpus 8 --price 3
  paramgolf estimate pr1493 --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_recipe(parser, optional=True)
    parser.add_argument(
        "--gpu", choices=DEVICES, default="H100", help="its kind; default: %(default)s"
    )
    devices = f"devices that train together; default: {CONTEST_GPUS}, for cpu 1"
    parser.add_argument("--gpus", metavar="N", type=count, help=devices)
    parser.add_argument(
        "--price", type=amount, metavar="DOLLARS", help="of a GPU's hour, for a cost"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(options: argparse.Namespace) -> int:
    """Print the estimate."""
    gpus = options.gpus or (1 if options.gpu == "cpu" else CONTEST_GPUS)
    title, changes, content = chosen(options.name, options.assignments)
    params = check(content, where=title)
    sections = params.train, params.eval_sliding, params.eval_ttt
    frozen = frozen_params(dataclasses.asdict(params.model), *sections)
    # of all codecs that `auto` tries ours is the shortest, and needs its decoder
    code = pack_code(frozen, rans=params.package.codec in ("rans", "auto"))
    code_bytes = len(code.content)
    result = estimate(params, code_bytes=code_bytes, device=options.gpu, count=gpus)
    result = {"recipe": title, "changes": changes, **result}
    if options.price is not None:
        result["dollars"] = prices(params, result, options.price)
    if options.json:
        print(json.dumps(result, indent=1, sort_keys=True))
    else:
        _show(result)
    return 0


def prices(params: Params, result: dict[str, Any], price: float) -> dict[str, float]:
    """Return the dollars of training, and of a run whose stages take all that the rules allow.

    The latter is training with calibration and both evaluations; start and compilation are apart.
    """
    limits = params.verify
    allowed = limits.train_seconds + 2 * limits.eval_seconds
    return {
        "training": dollars(result["run"]["train_seconds"] * result["devices"], price),
        "limits": dollars(allowed * result["devices"], price),
    }


def _show(result: dict[str, Any]) -> None:
    from paramgolf.experiments.show import Table, print_tables
    from paramgolf.terminal import Console, facts

    recipe = " ".join([result["recipe"], *result["changes"]])
    rows = []
    for part in result["artifact"]["parts"]:
        bits = "" if part["bits"] is None else f"{part['bits']:.3f}"
        rows.append((part["name"], f"{part['weights']:,}", bits, f"{part['bytes']:,}"))
    rows.append(("code", "", "", f"{result['artifact']['bytes_code']:,}"))
    headings = ("part", "weights", "bits", "bytes")
    title = f"{recipe} on {result['devices']} {result['device']}"
    print_tables([Table(title, headings, rows)], [])
    Console().print(facts(_facts(result)))


def _facts(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    artifact, run = result["artifact"], result["run"]
    yield "parameters", f"{result['parameters']['total']:,}"
    size = f"{artifact['bytes_total']:,} of {artifact['limit_bytes']:,} bytes"
    yield "artifact", f"{size}, {artifact['bits_per_weight']:.3f} bits a weight"
    if artifact["clip_factor"] != 1:
        yield "clips", f"times {artifact['clip_factor']:.3f}, as quantize.fit_bytes asks for"
    headroom = artifact["headroom_bytes"]
    room = f"{abs(headroom):,} bytes {'left' if headroom >= 0 else 'too many'}"
    yield "fits", f"{artifact['fits']}: {room}, ± {artifact['tolerance_bytes']:,}"
    flops = (
        f"{p['training'] / 1e6:,.0f} ({p['passes']} passes)" for p in result["flops_per_token"]
    )
    yield "million FLOPs", f"{', then '.join(flops)} a token of training"
    yield "memory", _memory_line(result["memory"])
    yield "training", f"{run['steps']:,} steps in {run['train_seconds']:,.0f} s"
    for part in run["stretches"]:
        size = f"{part['batch_tokens']:,} tokens in sequences of {part['sequence_length']:,}"
        yield "", f"{part['steps']:,} of {1000 * part['step_seconds']:,.1f} ms, {size}"
    peak = f"{100 * run['utilisation']:.2g}% of the peak"
    rate = f"{run['tokens_per_second']:,.0f} a second at {peak}"
    yield "tokens", f"{run['tokens']:,}, {rate}"
    for name, scored in result["evaluations"].items():
        if scored is not None:
            yield name, f"{scored:,.0f} tokens a second, without compiling"
    if cost := result.get("dollars"):
        whole = f"{cost['limits']:,.2f} where all stages take what the rules allow"
        yield "dollars", f"{cost['training']:,.2f} of training; {whole}, without compiling"


def _memory_line(memory: dict[str, Any]) -> str:
    total, activations = memory["total"] / GIB, memory["activations"] / GIB
    line = f"{total:.1f} GiB a device, {activations:.1f} of them activations"
    if memory["fits"] is False:
        line += f"; does NOT fit in {memory['capacity'] / GIB:.0f}, lower train.micro_batch_tokens"
    return line

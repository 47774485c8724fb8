"""Time a training step on this machine's GPU, and tell where the time goes.

The step is that of params.yaml, or of a recipe that is named, with changes. It runs on random
tokens, before recurrence and at its end; nothing is trained. The file holds milliseconds by kind of
kernel, tokens a second, the share of the GPU's peak (MFU), and memory.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paramgolf.arguments import add_recipe
from paramgolf.errors import ParamGolfError
from paramgolf.estimate.devices import GIB
from paramgolf.recipes import Params, check, chosen

EXAMPLE = """example:
  paramgolf profile
  paramgolf profile pr1493
  paramgolf profile h100x1 train.batch_tokens=98304 runtime.kernels=reference --output plain.json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_recipe(parser, optional=True)
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        default=Path("profile.json"),
        help="where the figures go; default: %(default)s",
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print the table, write the file."""
    from paramgolf.files import write_json

    title, changes, content = chosen(options.name, options.assignments)
    result = {"recipe": title, "changes": changes}
    result |= measure(check(content, where=title))
    write_json(options.output, result)
    _show(result)
    print(f"written to {options.output}")
    return 0


def measure(params: Params) -> dict[str, Any]:
    """Return the figures of a step in each of the two phases."""
    import torch

    from paramgolf.clock import seconds_since_start
    from paramgolf.profiling.step_benchmark import StepBenchmark
    from paramgolf.runtime import device_name, processes, resolve_device

    if resolve_device(params.runtime) == "cpu":
        fix = "run it on a machine with a CUDA GPU; `paramgolf estimate` needs none"
        raise ParamGolfError("a profile is of a GPU, and torch sees none", fix=fix)
    with processes(params.runtime) as runtime:
        benchmark = StepBenchmark(params, runtime)
        started = seconds_since_start()
        phases = {"first": phase_figures(benchmark, 0, params, device_name(runtime.device))}
        if params.model.recurrence or params.train.curriculum:
            phases["last"] = phase_figures(benchmark, -1, params, device_name(runtime.device))
        return {
            "device": device_name(runtime.device),
            "torch": torch.__version__,
            "micro_batch_tokens": benchmark.micro_batch_tokens,
            "startup_seconds": started,
            "peak_memory_bytes": torch.cuda.max_memory_allocated(),
            "phases": phases,
        }


def phase_figures(benchmark: Any, phase: int, params: Params, device: str) -> dict[str, Any]:
    """Return speed and time split of a step of the recipe's batch."""
    from paramgolf.model.flops import peak_flops, training_flops

    sizes = params.train.batch_sizes[phase]
    tokens = sizes.batch_tokens
    seconds = benchmark.step_seconds(phase, tokens)
    order = params.model.orders[phase]
    length, vocab_size = sizes.sequence_length, params.tokenizer.vocab_size
    flops = training_flops(params.model, vocab_size, order, length)
    peak = peak_flops(device)
    return {
        "order": list(order),
        "batch_tokens": tokens,
        "sequence_length": length,
        "step_ms": 1000 * seconds,
        "tokens_per_second": tokens / seconds,
        "mfu": flops * tokens / seconds / peak if peak else None,
        "time_split_ms": benchmark.split(phase, tokens),
    }


def _show(result: dict[str, Any]) -> None:
    from paramgolf.experiments.show import Table, print_tables

    phases = [*result["phases"].values()]
    rows = [
        ("tokens a step", *(f"{p['batch_tokens']:,}" for p in phases)),
        ("sequence length", *(f"{p['sequence_length']:,}" for p in phases)),
        ("tokens a second", *(f"{p['tokens_per_second']:,.0f}" for p in phases)),
        ("MFU", *("" if p["mfu"] is None else f"{p['mfu']:.1%}" for p in phases)),
        ("step, ms", *(f"{p['step_ms']:.1f}" for p in phases)),
    ]
    for kind in phases[0]["time_split_ms"]:
        rows.append((f"{kind}, ms", *(f"{p['time_split_ms'][kind]:.1f}" for p in phases)))
    recipe = " ".join([result["recipe"], *result["changes"]])
    machine = f"{result['device']}, torch {result['torch']}"
    title = f"{recipe} on {machine}: {result['micro_batch_tokens']:,} tokens a pass"
    headings = ("", *(f"{name} order" for name in result["phases"]))
    print_tables([Table(title, headings, rows)], [])
    memory = f"{result['peak_memory_bytes'] / GIB:.1f} GiB"
    print(f"ready after {result['startup_seconds']:.0f} s; at most {memory}")
